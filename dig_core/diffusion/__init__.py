"""How a state is noised: spaces, schedules, kernels, processes."""

from .lattice import Lattice
from .processes import Diffusion, Joint, Noised
from .schedules import Cosine, Geometric, Karras, Linear, LogSNR, Sigmoid
from .so3 import SO3
from .spaces import Euclidean, Torus, ZeroCentroid

__all__ = [
    "Cosine", "Diffusion", "Euclidean", "Geometric", "Joint", "Karras", "Lattice", "Linear", "LogSNR", "Noised", "SO3", "Sigmoid", "Torus",
    "ZeroCentroid",
]  # fmt: skip
