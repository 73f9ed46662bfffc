"""How a system is described: Cartesian and internal coordinates."""

from .cartesian import Cartesian
from .internal import Internal

__all__ = ["Cartesian", "Internal"]
