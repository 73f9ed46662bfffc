"""How a system is described: Cartesian and internal coordinates."""

from .cartesian import Cartesian
from .contract import Coordinates
from .internal import Internal

__all__ = ["Cartesian", "Coordinates", "Internal"]
