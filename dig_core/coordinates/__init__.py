"""How a system is described: Cartesian and internal coordinates, adsorbates, crystals."""

from .adsorbate import Adsorbate
from .cartesian import Cartesian
from .contract import Coordinates
from .crystal import Crystal
from .internal import Internal

__all__ = ["Adsorbate", "Cartesian", "Coordinates", "Crystal", "Internal"]
