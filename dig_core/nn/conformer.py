"""A Graphormer over the atoms of any molecule: each reads and answers for the internal coordinates that place it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..coordinates.internal import Internal
from ..coordinates.measure import frame
from ..coordinates.zmatrix import ZMatrix
from ..errors import UnsupportedError
from ..system.descriptor import Descriptor, molecule
from ..types import State, Tangent
from .embed import seeded
from .graphormer import Graphormer
from .rows import FEATURES, NODE_SIZES, PAIR_SIZES, ROTOR, STRAIGHT, Rows, rows_of

__all__ = ["ConformerGraphormer", "given_molecule", "molecule_of"]


class ConformerGraphormer(nn.Module):
    """Departures of noise and log-variance of ``shape`` and ``torsion`` of :class:`Internal`, for any molecule: see :meth:`on`.

    An atom is the row of the z-matrix that places it. It knows its element and surroundings in the graph, which atoms it is placed by,
    what its bond, angle and torsion are and how far they are from rest; the encoder adds distances in the molecule that the noisy
    state decodes to. Sines of torsions tell mirror images apart. Each row's answer is read from its own features and those of the
    three atoms before it.

    ``given`` is the molecule that this object serves, as :meth:`of` writes it; ``encoder`` holds options of :class:`Graphormer`.
    """

    def __init__(self, given: dict, encoder: dict | None = None):
        super().__init__()
        options: dict[str, Any] = {**(encoder or {}), "node_sizes": NODE_SIZES, "pair_sizes": PAIR_SIZES}
        self.encoder = Graphormer(**options)
        shared: dict[str, Any] = self.encoder.config
        width, seed = shared["width"], shared["seed"]
        self.config: dict[str, Any] = {"given": given, "encoder": self.encoder.config}
        with seeded(seed + 1):
            self.enter = nn.Linear(FEATURES, width)
            self.hidden = nn.Linear(4 * width + FEATURES, width)
            self.leave = nn.Linear(width, 6)
            nn.init.zeros_(self.leave.weight)
            nn.init.zeros_(self.leave.bias)
        rows = rows_of(*molecule_of(given))
        self.sizes = {"shape": rows.centre.shape[1], "torsion": rows.torsion.shape[1]}
        for name, value in rows._asdict().items():
            self.register_buffer(f"_{name}", value, persistent=False)

    @classmethod
    def of(cls, coordinates: Internal, descriptor: Descriptor, **encoder) -> ConformerGraphormer:
        """An untrained network; ``encoder`` are options of :class:`Graphormer`."""
        return cls(given_molecule(coordinates, descriptor), encoder)

    def on(self, coordinates: Internal, descriptor: Descriptor) -> ConformerGraphormer:
        """The same network for another molecule, parameters shared. Raises UnsupportedError for coordinates that are whitened."""
        given = given_molecule(coordinates, descriptor)
        fresh = self.bound(rows_of(coordinates, descriptor))
        fresh.config = {**self.config, "given": given}
        return fresh

    def bound(self, rows: Rows) -> ConformerGraphormer:
        """The same network on other rows, those of a batch of molecules for example, parameters shared."""
        fresh = copy.copy(self)
        fresh._buffers = {**self._buffers, **{f"_{name}": x.to(self.leave.weight.device) for name, x in rows._asdict().items()}}
        fresh.sizes = {"shape": rows.centre.shape[1], "torsion": rows.torsion.shape[1]}
        return fresh

    @property
    def rows(self) -> Rows:
        return Rows(**{name: getattr(self, f"_{name}") for name in Rows._fields})

    def forward(self, state: State, t: Tensor, descriptor: Descriptor) -> tuple[Tangent, Tangent]:
        """(noise departure, log-variance departure), each (B, n) a component; ``t`` (B,) or (1,).

        The molecule is the one that this network is bound to; of the descriptor nothing is read.
        """
        rows, weight = self.rows, self.leave.weight
        shape, torsion = state["shape"].to(weight), state["torsion"].to(weight)
        with torch.set_grad_enabled(torch.is_grad_enabled() and (shape.requires_grad or torsion.requires_grad)):
            values, placing = _values(rows, shape, torsion)
            positions = _positions(rows, placing)
        graph = replace(descriptor, numbers=rows.numbers, node=rows.node, pair=rows.pair)
        node = self.encoder(positions, t.to(weight), graph, self.enter(values)).node
        padded = torch.cat([node, torch.zeros_like(node[:, :1])], 1)
        around = [node, *(_taken(padded, rows.before[..., c]) for c in range(3)), values]
        out = self.leave(F.silu(self.hidden(torch.cat(around, -1)))).flatten(1).unflatten(1, (-1, 2))
        out = torch.cat([out, torch.zeros_like(out[:, :1])], 1)
        both = {name: _taken(out, index) for name, index in (("shape", rows.shape), ("torsion", rows.torsion))}
        return {n: x[..., 0] for n, x in both.items()}, {n: x[..., 1] for n, x in both.items()}


def _values(rows: Rows, shape: Tensor, torsion: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, FEATURES) of what places each row, and (B, N, 3) bond, angle and raw torsion, or components where the row is straight."""
    raw = rows.centre.to(shape) + shape * rows.width.to(shape)

    def read(slots: Tensor, of_shape: Tensor, of_torsion: Tensor) -> Tensor:
        """(B, N, S), slots of nothing read 0."""
        columns = torch.cat([of_shape.to(shape).expand_as(shape), of_torsion, torch.zeros_like(shape[:, :1])], 1)
        return columns.gather(1, slots.expand(len(shape), -1, -1).flatten(1)).unflatten(1, slots.shape[1:])

    silent = torch.zeros_like(torsion)
    scaled, centre, width = (read(rows.slots, x, silent) for x in (shape, rows.centre, rows.width))
    placing, mates = (read(slots, raw, torsion) for slots in (rows.slots, rows.mates))
    bent = (rows.kind != STRAIGHT).to(shape)[..., None]
    turn = placing[..., 2:] * torch.arange(1, 4, device=shape.device)
    third = torch.cat([turn.sin(), turn.cos(), centre[..., 2:].sin(), centre[..., 2:].cos()], -1) * bent
    values = torch.cat([scaled, third, centre[..., :2], width], -1)
    # An end group's angle is three times its mean one: back to that of its first atom.
    angle = torch.where(rows.kind == ROTOR, (placing[..., 2] - mates.sum(-1)) / 3, placing[..., 2])
    return values, torch.cat([placing[..., :2], angle[..., None]], -1)


def _positions(rows: Rows, placing: Tensor) -> Tensor:
    """(B, N, 3) Angstrom, row by row; Parsons et al., doi:10.1002/jcc.20237."""
    b, n, _ = placing.shape
    length, theta, phi = placing.unbind(-1)
    across = length * theta.sin()
    bent = torch.stack([-length * theta.cos(), across * phi.cos(), across * phi.sin()], -1)
    local = torch.where((rows.kind == STRAIGHT)[..., None], placing, bent)
    each, before = torch.arange(b, device=placing.device)[:, None], rows.before.expand(b, -1, -1)
    # The last point stands for those that rows are not placed by: any plane will do for the third.
    points = torch.cat([placing.new_zeros(b, n, 3), placing.new_tensor([0.0, 1.0, 0.0]).expand(b, 1, 3)], 1)
    points[:, 1, 0] = length[:, 1]
    for row in range(2, n):
        j, k, m = points[each, before[:, row]].unbind(1)
        axes = torch.stack(frame(m, k, j), -1)
        points[:, row] = j + (axes @ local[:, row, :, None])[..., 0]
    return points[:, :n]


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """(B, M, W) rows of ``x`` (B, N, W) at ``index`` (1 or B, M)."""
    return x.gather(1, index.expand(len(x), -1)[..., None].expand(-1, -1, x.shape[2]))


def given_molecule(coordinates: Internal, descriptor: Descriptor) -> dict:
    """The molecule as JSON values, exact: floats are written so that they read the same."""
    size = len(coordinates.centre)
    if not torch.equal(coordinates.whitening, torch.eye(size, dtype=coordinates.whitening.dtype)):
        raise UnsupportedError("a network of any molecule needs coordinates that are not whitened: take Internal.from_reference's.")
    i, j = descriptor.bonds.unbind(1)
    return {
        "numbers": descriptor.numbers.tolist(), "bonds": descriptor.bonds.tolist(), "orders": descriptor.pair[i, j, 1].tolist(),
        "charges": (descriptor.node[:, 2] - 8).tolist(), "zmatrix": coordinates.zmatrix.config,
        "centre": coordinates.centre.tolist(), "width": coordinates.width.tolist(),
    }  # fmt: skip


def molecule_of(given: dict) -> tuple[Internal, Descriptor]:
    """What :func:`given_molecule` wrote, without a reference structure."""
    coordinates = Internal(
        ZMatrix.from_config(**given["zmatrix"]), torch.tensor(given["centre"], dtype=torch.float64),
        torch.tensor(given["width"], dtype=torch.float64),
    )  # fmt: skip
    return coordinates, molecule(given["numbers"], given["bonds"], charges=given["charges"], orders=given["orders"])
