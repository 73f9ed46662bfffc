"""How a system is described: Cartesian and internal coordinates."""

from .adsorbate import Adsorbate
from .cartesian import Cartesian
from .contract import Coordinates
from .internal import Internal

__all__ = ["Adsorbate", "Cartesian", "Coordinates", "Internal"]
