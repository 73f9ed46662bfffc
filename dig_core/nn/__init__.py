"""The network: the Graphormer encoder and the heads that read it."""

from .graphormer import Graphormer
from .heads import CoordinateHead, VectorHead

__all__ = ["CoordinateHead", "Graphormer", "VectorHead"]
