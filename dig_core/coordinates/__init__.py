"""How a system is described: Cartesian and internal coordinates, adsorbates, backbones, crystals."""

from .adsorbate import Adsorbate
from .backbone import Backbone
from .cartesian import Cartesian
from .contract import Coordinates
from .crystal import Crystal
from .internal import Internal

__all__ = ["Adsorbate", "Backbone", "Cartesian", "Coordinates", "Crystal", "Internal"]
