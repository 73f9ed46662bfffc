"""The encoder: a pre-LN transformer over atoms whose attention is biased by the bond graph and by distances (Graphormer)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import IncompatibleError
from ..system.descriptor import Descriptor
from .embed import CategoryEmbedding, TimeEmbedding, seeded
from .geometry import PairList, RadialBasis, centre, distances, pair_list, pair_types

__all__ = ["Encoded", "Graphormer", "attention", "linear", "low_precision", "modulated_norm", "split_heads"]

MASKED = -1e9
"""Attention bias of a padded key: its weight is exactly zero in float32, and no row can become NaN."""


class Encoded(NamedTuple):
    """What the encoder knows: ``node`` (B, N, width), zero for padding; ``pair`` (B, heads, N, N), the attention bias of
    query i and key j, ``MASKED`` where j is padding; ``mask`` (N,) or (B, N) bool, True for real atoms."""

    node: Tensor
    pair: Tensor
    mask: Tensor


def low_precision(precision: str) -> torch.dtype | None:
    """Type of the hidden matrix products: None for "float32" (the type of the weights), bfloat16 for "bfloat16"."""
    if precision not in ("float32", "bfloat16"):
        raise IncompatibleError(f'precision must be "float32" or "bfloat16", got {precision!r}.')
    return torch.bfloat16 if precision == "bfloat16" else None


def linear(layer: nn.Linear, x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """``layer(x)``, computed and returned in ``dtype`` if one is given."""
    if dtype is None:
        return layer(x)
    return F.linear(x.to(dtype), layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype))


def split_heads(x: Tensor, parts: int, heads: int, dtype: torch.dtype) -> Tensor:
    """(B, N, parts * heads * d) -> (parts, B * heads, N, d) in ``dtype``, contiguous: one copy instead of one a part."""
    b, n, _ = x.shape
    x = x.view(b, n, parts, heads, -1).permute(2, 0, 3, 1, 4)
    return x.to(dtype, memory_format=torch.contiguous_format).contiguous().view(parts, b * heads, n, -1)


def attention(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """Attention weights (B * heads, N, N), rows sum to one; ``query``, ``key`` (B * heads, N, d), ``bias`` (B, heads, N, N).

    Plain products and a softmax: for tens of atoms on a CPU faster than torch's fused kernel with a bias, and every
    derivative exists, forward-mode and double-backward too.
    """
    logits = torch.baddbmm(bias.flatten(0, 1), query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)
    return logits.softmax(-1)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm of ``x`` (B, N, W) with gain 1 + ``scale`` and ``shift``, each (T, 1, W); free of extra passes when T = 1."""
    if len(scale) == 1:
        return F.layer_norm(x, x.shape[-1:], 1 + scale.flatten(), shift.flatten())
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)


class Block(nn.Module):
    """Pre-LN attention and feed-forward; the time scales norms and residuals (adaLN, arXiv:2212.09748), not at all at first.

    The layers have no biases of their own: the norms' time-dependent shifts do that work, and a bias costs a copy.
    """

    def __init__(self, width: int, heads: int, ffn: int, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.heads, self.dtype = heads, dtype
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.widen = nn.Linear(width, ffn * width, bias=False)
        self.narrow = nn.Linear(ffn * width, width, bias=False)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, bias: Tensor, time: Tensor) -> Tensor:
        """``x`` (B, N, W), ``bias`` (B, heads, N, N), ``time`` (T, W) with T = 1 or B -> (B, N, W)."""
        b, n, w = x.shape
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(time)[:, None].chunk(6, dim=-1)
        qkv = linear(self.qkv, modulated_norm(x, scale1, shift1), self.dtype)
        query, key, value = split_heads(qkv, 3, self.heads, x.dtype)
        heard = torch.bmm(attention(query, key, bias), value)
        heard = heard.view(b, self.heads, n, -1).transpose(1, 2).reshape(b, n, w)
        x = torch.addcmul(x, linear(self.mix, heard, self.dtype).to(x.dtype), 1 + gate1)
        hidden = F.silu(linear(self.widen, modulated_norm(x, scale2, shift2), self.dtype))
        return torch.addcmul(x, linear(self.narrow, hidden, self.dtype).to(x.dtype), 1 + gate2)


class DistanceBias(nn.Module):
    """Distances of one structure -> attention bias per pair, and what each atom feels of all others."""

    def __init__(self, width: int, heads: int, basis: int, reach: float, elements: int) -> None:
        super().__init__()
        self.radial = RadialBasis(basis, reach, elements)
        self.hidden = nn.Linear(basis, basis, bias=False)
        self.out = nn.Linear(basis, heads, bias=False)
        self.near = nn.Linear(basis, width, bias=False)

    def forward(self, positions: Tensor, types: Tensor, pairs: PairList, incidence: Tensor) -> tuple[Tensor, Tensor]:
        """``positions`` (B, N, 3) Angstrom, ``types`` (R, P), ``incidence`` (R, N, P) -> (B, P, heads), (B, N, width)."""
        radial = self.radial(distances(positions, pairs), types)
        bias = self.out(F.silu(self.hidden(radial)))
        return bias, self.near(torch.bmm(incidence.expand(len(radial), -1, -1), radial))


class Graphormer(nn.Module):
    """Atoms, bonds, positions and time -> features per atom and per pair, blind to rotation, translation and reflection.

    The encoder of the article (arXiv:2306.05445, A.1; Graphormer arXiv:2106.05234 and 2203.04810) with pre-LN blocks and
    a float time. Node input: atom + time + sum over other atoms of the projected radial basis. Attention bias, shared by
    all layers: graph (2-D) + distances (3-D, scaled by the time) + distances of the reference structure if ``reference``.

    Parameters
    ----------
    width, layers, heads: of the transformer; ``heads`` divides ``width``.
    basis: Gaussians of the radial basis.
    ffn: width of the feed-forward layer over ``width``.
    reach: Angstrom, the farthest centre of the radial basis.
    reference: whether the descriptor's reference structure is read.
    precision: "float32", or "bfloat16" for the large products inside blocks; inputs and outputs keep the weights' type.
    node_sizes, pair_sizes: categories of each column of ``descriptor.node`` (the element first) and ``descriptor.pair``.
    seed: of the initial weights.

    ``config`` holds all of these as JSON values; ``Graphormer(**config)`` is the same network, untrained.

    Raises
    ------
    IncompatibleError: ``heads`` does not divide ``width``, or an unknown precision.
    """

    def __init__(
        self, width: int = 128, layers: int = 4, heads: int = 8, basis: int = 32, ffn: int = 2, *, reach: float = 12.0,
        reference: bool = False, precision: str = "float32", node_sizes: Sequence[int] = (119, 16, 17),
        pair_sizes: Sequence[int] = (16, 8), seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads:
            raise IncompatibleError(f"width must be a multiple of heads, got width {width} and heads {heads}.")
        self.config = {
            "width": width, "layers": layers, "heads": heads, "basis": basis, "ffn": ffn, "reach": reach,
            "reference": reference, "precision": precision, "node_sizes": list(node_sizes),
            "pair_sizes": list(pair_sizes), "seed": seed,
        }  # fmt: skip
        dtype = low_precision(precision)
        with seeded(seed):
            self.atom = CategoryEmbedding(node_sizes, width)
            self.graph = CategoryEmbedding(pair_sizes, heads, std=0.1)
            self.time = TimeEmbedding(width)
            self.time_bias = nn.Linear(width, heads)
            nn.init.zeros_(self.time_bias.weight)
            nn.init.zeros_(self.time_bias.bias)
            self.distance = DistanceBias(width, heads, basis, reach, node_sizes[0])
            self.reference = DistanceBias(width, heads, basis, reach, node_sizes[0]) if reference else None
            self.blocks = nn.ModuleList(Block(width, heads, ffn, dtype) for _ in range(layers))
            self.norm = nn.LayerNorm(width)

    def forward(self, positions: Tensor, t: Tensor, descriptor: Descriptor, extra: Tensor | None = None) -> Encoded:
        """Encode a batch.

        Parameters
        ----------
        positions: (B, N, 3) Angstrom; padded atoms may hold anything.
        t: (B,), (1,) or a scalar tensor, time in [0, 1]; one value for all is the cheaper case.
        descriptor: of one molecule, numbers (N,), node (N, Fv), pair (N, N, Fp); or the same with B before each, one
            molecule per sample. Atoms of number 0 are padding.
        extra: (B, N, width), whatever else is known of each atom.

        Raises
        ------
        IncompatibleError: shapes that do not fit, categories out of range, no reference structure where one is read.
        """
        numbers, node, pair = _batched(descriptor)
        t = t.reshape(-1)
        _check(positions, t, numbers)
        dtype = self.norm.weight.dtype
        b, n, _ = positions.shape
        mask = numbers > 0
        pairs = pair_list(n, positions.device)
        types, incidence = pair_types(numbers, pairs), _incidence(mask, pairs, dtype)
        embedded = self.time(t)
        active = F.silu(embedded)

        bias, near = self.distance(centre(positions, mask, dtype), types, pairs, incidence)
        bias = bias * (1 + self.time_bias(active))[:, None]
        x = self.atom(node) + embedded[:, None] + near
        if extra is not None:
            x = x + extra
        if self.reference is not None:
            fixed, near = self.reference(centre(_reference(descriptor, n), mask, dtype), types, pairs, incidence)
            bias, x = bias + fixed, x + near
        graph = self.graph(pair).permute(0, 3, 1, 2).masked_fill(~mask[:, None, None], MASKED).contiguous()
        bias = (graph + bias.index_select(1, pairs.table).view(b, n, n, -1).permute(0, 3, 1, 2)).contiguous()
        for block in self.blocks:
            x = block(x, bias, active)
        return Encoded(self.norm(x) * mask[..., None], bias, descriptor.numbers > 0)


def _batched(descriptor: Descriptor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers (R, N), node (R, N, Fv) and pair (R, N, N, Fp) with R = 1 for one molecule, else one row per sample."""
    if descriptor.numbers.dim() == 2:
        return descriptor.numbers, descriptor.node, descriptor.pair
    return descriptor.numbers[None], descriptor.node[None], descriptor.pair[None]


def _check(positions: Tensor, t: Tensor, numbers: Tensor) -> None:
    """Raise IncompatibleError unless positions are (B, N, 3), times (1,) or (B,), and numbers (1, N) or (B, N)."""
    rows, n = numbers.shape
    if positions.dim() != 3 or positions.shape[1:] != (n, 3) or rows not in (1, len(positions)):
        raise IncompatibleError(
            f"expected positions ({'B' if rows == 1 else rows}, {n}, 3) for this descriptor, got {tuple(positions.shape)}."
        )
    if len(t) not in (1, len(positions)):
        raise IncompatibleError(f"expected one time or {len(positions)}, got {len(t)}.")


def _incidence(mask: Tensor, pairs: PairList, dtype: torch.dtype) -> Tensor:
    """(R, N, P): 1 where a pair of two different real atoms holds the atom: a product with it sums over the others."""
    atoms = torch.arange(mask.shape[1], device=mask.device)[:, None]
    holds = (atoms == pairs.first) ^ (atoms == pairs.second)
    return (holds & (mask[:, pairs.first] & mask[:, pairs.second])[:, None]).to(dtype)


def _reference(descriptor: Descriptor, n: int) -> Tensor:
    """(R, N, 3) Angstrom; raises IncompatibleError if there is none of ``n`` atoms."""
    if descriptor.reference is None or descriptor.reference.positions.shape[1] != n:
        raise IncompatibleError(f"this model reads a reference structure of {n} atoms: give the descriptor one.")
    return descriptor.reference.positions
