"""How a system is described: Cartesian and internal coordinates, adsorbates, ligands in pockets, backbones, crystals."""

from .adsorbate import Adsorbate
from .backbone import Backbone
from .bound import Bound
from .cartesian import Cartesian
from .contract import Coordinates
from .crystal import Crystal
from .internal import Internal

__all__ = ["Adsorbate", "Backbone", "Bound", "Cartesian", "Coordinates", "Crystal", "Internal"]
