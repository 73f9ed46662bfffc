"""Networks as score models take them: a Graphormer that sees the noisy molecule in 3D, read in Cartesian or internal coordinates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..coordinates.internal import Internal
from ..system.descriptor import Descriptor
from ..types import State, Tangent
from .graphormer import Graphormer
from .heads import CoordinateHead, VectorHead

__all__ = ["CartesianGraphormer", "InternalGraphormer"]


class CartesianGraphormer(nn.Module):
    """Noise departure of the component ``pos`` (B, N, 3), equivariant; ``scale`` Angstrom a unit of pos. The variance is left alone.

    The network's state is noisy positions, as in the article; ``chiral`` lets it tell mirror images apart.
    """

    def __init__(self, encoder: dict | None = None, scale: float = 1.0, chiral: bool = True):
        super().__init__()
        self.encoder = Graphormer(**(encoder or {}))
        shared: dict[str, Any] = {name: self.encoder.config[name] for name in ("width", "heads", "seed")}
        self.head, self.scale = VectorHead(**shared, chiral=chiral), float(scale)
        self.config = {"encoder": self.encoder.config, "scale": self.scale, "chiral": chiral}

    def forward(self, state: State, t: Tensor, descriptor: Descriptor) -> tuple[Tangent, Tangent]:
        positions = state["pos"] * self.scale
        noise = self.head(self.encoder(positions, t.float(), descriptor), positions, descriptor)
        return {"pos": noise}, {"pos": noise.new_zeros(len(noise), 1, 1)}


class InternalGraphormer(nn.Module):
    """Departures of noise and log-variance of ``shape`` and ``torsion`` from the molecule that the noisy state decodes to.

    ``coordinates`` is the config of :class:`Internal`; its buffers are part of the state dict, or copied by :meth:`of`.
    """

    def __init__(self, coordinates: dict, encoder: dict | None = None):
        super().__init__()
        self.coordinates = Internal.from_config(**coordinates)
        self.encoder = Graphormer(**(encoder or {}))
        self.config = {"coordinates": self.coordinates.config, "encoder": self.encoder.config}
        shape, torsions = self.coordinates.shape_atoms, self.coordinates.torsion_atoms
        self.sizes = {"shape": len(shape), "torsion": len(torsions)}
        atoms = [list(a) + [-1] * (4 - len(a)) for a in [*shape, *torsions]]
        self.register_buffer("atoms", torch.tensor(atoms), persistent=False)
        self.register_buffer("kind", torch.tensor([*(min(k, 2) for k in self.coordinates.kinds), *[2] * len(torsions)]), persistent=False)
        shared: dict[str, Any] = {name: self.encoder.config[name] for name in ("width", "precision", "seed")}
        self.head = CoordinateHead(features=3, n_coordinates=len(atoms), channels=2, **shared)

    @classmethod
    def of(cls, coordinates: Internal, **encoder) -> InternalGraphormer:
        """A network for given coordinates; ``encoder`` are options of :class:`Graphormer`."""
        network = cls(coordinates.config, encoder)
        network.coordinates.load_state_dict(coordinates.state_dict())
        return network

    def forward(self, state: State, t: Tensor, descriptor: Descriptor) -> tuple[Tangent, Tangent]:
        positions = self.coordinates.decode(state, descriptor).positions
        encoded = self.encoder(positions, t.float(), descriptor)
        shape, torsion = state["shape"].float(), state["torsion"].float()
        silent = torch.zeros_like(shape)
        values = torch.cat(
            [torch.stack([shape, silent, silent], -1), torch.stack([torch.zeros_like(torsion), torsion.sin(), torsion.cos()], -1)], dim=1
        )
        both = self.head(encoded, self.atoms, self.kind, values).split(list(self.sizes.values()), dim=1)
        noise, log_spread = (
            {name: part[..., channel] for name, part in zip(self.sizes, both, strict=True)} for channel in (0, 1)
        )
        return noise, log_spread
