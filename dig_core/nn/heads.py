"""Heads: atom vectors that turn with the molecule, and numbers per internal coordinate that do not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import IncompatibleError
from ..system.descriptor import Descriptor
from .embed import seeded
from .geometry import centre, unit_vectors
from .graphormer import Encoded, attention, linear, low_precision, split_heads

__all__ = ["CoordinateHead", "VectorHead"]

KINDS = 3
"""Bond, angle, torsion."""


class VectorHead(nn.Module):
    """One vector per atom: rotates with the structure, blind to translation; changed by reflection if ``chiral``.

    One more attention block (article, SI Alg. 10: weights times a scalar of the sender times unit vectors) and a radial
    term from the pair bias give ``channels`` vectors per atom; the atom's features and their dot products gate their sum.
    If ``chiral``, cross products of channels (axial: a point reflection keeps them and flips the others) are summed
    too, and triple products are among the gates' inputs. Without them mirror images get mirrored answers, which is wrong
    where only one hand exists. The output is zero before training, and on padded and frozen atoms.

    Parameters
    ----------
    width, heads: of the encoder.
    channels: vectors per atom, at least 3 if ``chiral``.
    chiral: whether the head can tell mirror images apart.
    seed: of the initial weights.

    Raises
    ------
    IncompatibleError: ``heads`` does not divide ``width``, or too few channels.
    """

    def __init__(self, width: int = 128, heads: int = 8, channels: int = 4, chiral: bool = True, seed: int = 0) -> None:
        super().__init__()
        if width % heads or channels < (3 if chiral else 1):
            raise IncompatibleError(
                f"heads must divide width and a chiral head needs 3 channels, got width {width}, {heads}, {channels}."
            )
        self.config = {"width": width, "heads": heads, "channels": channels, "chiral": chiral, "seed": seed}
        self.heads, self.channels, self.chiral = heads, channels, chiral
        kinds = 2 if chiral else 1
        with seeded(seed):
            self.query_key = nn.Linear(width, 2 * width)
            self.sent = nn.Linear(width, heads * channels)
            self.radial = nn.Linear(heads, channels, bias=False)
            self.hidden = nn.Linear(width + kinds * channels, width)
            self.gates = nn.Linear(width, kinds * channels)
            nn.init.zeros_(self.gates.weight)
            nn.init.zeros_(self.gates.bias)

    def forward(self, encoded: Encoded, positions: Tensor, descriptor: Descriptor) -> Tensor:
        """Encoder output, ``positions`` (B, N, 3) Angstrom and the descriptor they were encoded with -> (B, N, 3)."""
        node, mask = encoded.node, encoded.mask.view(-1, encoded.mask.shape[-1])
        vectors = self._vectors(encoded, centre(positions, mask, node.dtype), mask)
        scalars = [node, (vectors * vectors.roll(1, 2)).sum(-1)]
        if self.chiral:
            axial = torch.linalg.cross(vectors, vectors.roll(1, 2))
            scalars.append((axial * vectors.roll(2, 2)).sum(-1))
            vectors = torch.cat([vectors, axial], dim=2)
        gates = self.gates(F.silu(self.hidden(torch.cat(scalars, dim=-1))))
        free = mask & descriptor.mobile
        return (gates[..., None] * vectors).sum(2) * free[..., None]

    def _vectors(self, encoded: Encoded, positions: Tensor, mask: Tensor) -> Tensor:
        """(B, N, channels, 3): sum over j of weight (i, j) times the unit vector from j to i."""
        b, n, _ = encoded.node.shape
        query, key = split_heads(self.query_key(encoded.node), 2, self.heads, encoded.node.dtype)
        weights = attention(query, key, encoded.pair).view(b, self.heads, n, n)
        sent = self.sent(encoded.node).view(b, n, self.heads, self.channels)
        weights = torch.einsum("bhij,bjhc->bicj", weights, sent)
        both = mask[:, :, None, None] & mask[:, None, None]
        pair = torch.einsum("bhij,ch->bicj", encoded.pair, self.radial.weight)
        return torch.matmul(weights + pair * both, unit_vectors(positions))


class CoordinateHead(nn.Module):
    """Numbers per internal coordinate from the features of its atoms: blind to rotation, translation and reflection.

    Handedness comes from ``values``: sines of signed torsions tell mirror images apart, distances do not.
    The output is zero before training.

    Parameters
    ----------
    width: of the encoder.
    features: F of ``values``, 0 for none.
    channels: numbers out (noise and log-variance, say).
    n_coordinates: D, for one embedding per coordinate of one system; None for a head that transfers between systems.
    precision: as in the encoder.
    seed: of the initial weights.

    Raises
    ------
    IncompatibleError: an unknown precision.
    """

    def __init__(
        self, width: int = 128, features: int = 0, channels: int = 2, n_coordinates: int | None = None,
        precision: str = "float32", seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = {
            "width": width, "features": features, "channels": channels, "n_coordinates": n_coordinates,
            "precision": precision, "seed": seed,
        }  # fmt: skip
        self.dtype = low_precision(precision)
        with seeded(seed):
            self.slots = nn.Linear(width, 4 * width, bias=False)
            self.kind = nn.Embedding(KINDS, width)
            self.values = nn.Linear(features, width, bias=False) if features else None
            self.which = nn.Parameter(torch.zeros(n_coordinates, width)) if n_coordinates else None
            self.hidden = nn.Linear(width, width)
            self.out = nn.Linear(width, channels)
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, encoded: Encoded, atoms: Tensor, kind: Tensor, values: Tensor | None = None) -> Tensor:
        """Read the coordinates.

        Parameters
        ----------
        encoded: encoder output.
        atoms: (D, 4) atom indices, -1 where a bond or an angle has no more atoms.
        kind: (D,) 0 bond, 1 angle, 2 torsion (sibling torsions too).
        values: (B, D, F) per-coordinate input, if the head has ``features``.

        Returns
        -------
        (B, D, channels).

        Raises
        ------
        IncompatibleError: tables, values and head that do not fit each other.
        """
        b, n, w = encoded.node.shape
        self._check(n, atoms, kind, values)
        slots = linear(self.slots, encoded.node, self.dtype).view(b, n * 4, w)
        # A product with zeros and ones: sums over slots, skips -1, and its derivative needs no scatter.
        picks = (atoms[:, None] == torch.arange(n, device=atoms.device)[:, None]).flatten(1).to(slots.dtype)
        x = torch.bmm(picks.expand(b, -1, -1), slots).to(encoded.node.dtype)
        base = self.kind(kind) if self.which is None else self.kind(kind) + self.which
        x = x + base
        if self.values is not None and values is not None:
            x = x + self.values(values.to(x.dtype))
        hidden = F.silu(linear(self.hidden, F.silu(x), self.dtype)).to(x.dtype)
        return self.out(hidden)

    def _check(self, n: int, atoms: Tensor, kind: Tensor, values: Tensor | None) -> None:
        """Raise IncompatibleError unless tables, values and head fit each other and the encoder's ``n`` atoms."""
        if atoms.dim() != 2 or atoms.shape[1] != 4 or kind.shape != atoms.shape[:1]:
            raise IncompatibleError(
                f"expected atoms (D, 4) and kind (D,), got {tuple(atoms.shape)} and {tuple(kind.shape)}."
            )
        if bool((atoms >= n).any()) or bool(((kind < 0) | (kind >= KINDS)).any()):
            raise IncompatibleError(f"expected atom indices below {n} and kinds 0 to {KINDS - 1}, got others.")
        if self.which is not None and len(self.which) != len(atoms):
            raise IncompatibleError(f"this head was made for {len(self.which)} coordinates, got {len(atoms)}.")
        features = 0 if values is None else values.shape[-1]
        if features != self.config["features"]:
            raise IncompatibleError(f"this head reads {self.config['features']} features a coordinate, got {features}.")
