"""A Graphormer over the residues of a protein: what a residue knows of another it sees from its own frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..coordinates.backbone import Backbone
from ..diffusion import SO3, Diffusion, Geometric, Joint, LogSNR, ZeroCentroid
from ..diffusion.rotations import rotation_matrix
from ..diffusion.schedules import Schedule
from ..errors import IncompatibleError
from ..system.descriptor import Descriptor
from ..system.protein import RESIDUES, Residues, residues
from ..types import State, Tangent
from .embed import TimeEmbedding, seeded
from .graphormer import attention, modulated_norm, split_heads
from .known import KnownStructures, Recollection
from .residues import ALONG, TOLD, Told, View, along, channels, displacements, lengths, n_lengths

__all__ = ["BackboneGraphormer"]

_APART = 32  # residue numbers further apart than this look alike
_ANGLE = (0.03, 9.8)  # rad an axis; so that orientations fade together with positions, and are even long before the end
_FINE, _FINE_ANGLE = 0.1, 0.05  # Angstrom, rad: noise below it is told by features that do not see so little
_HIDDEN = 1.5  # Angstrom: noise that begins to hide where a residue is
_SCHEDULES: dict[str, Schedule] = {"ou": LogSNR(10.0, -10.0), "brownian": Geometric(0.01, 150.0)}
"""In units of ``scale``. What is left of a structure at the end counts with the number of residues: 35 Angstrom, where the article's code
ends, would still tell which state a protein is in (benchmarks/frames.py)."""


class BackboneGraphormer(nn.Module):
    """Noise departures and log-variances of the components of :class:`Backbone`, for any sequence.

    Residues are nodes. What one knows of another is a pair representation: the distance, direction and orientation of the other as
    seen from its own frame, how far apart they are along the chain, the kinds of both, those of a ``reference`` structure and
    embeddings if there are any. Pairs are listened to once and bias the attention of all layers; displacements towards others
    come along as vectors in a residue's frame. The answer is a shift and a turn in that frame, so it turns with the protein, and
    mirror images are told apart. The residues before and after are seen apart from all others, to the precision of a bond.

    With a ``reference`` structure residues also tell each other where they would stand if the two of them were as they are in it:
    whatever moves as a rigid part is denoised well from the start, and what is learned is which parts there are.

    Parameters
    ----------
    width, heads, layers, ffn: of the transformer. pair: width of the pair representation; heard: how much of it is listened to.
    basis: Gaussians of the distance.
    process: ``"ou"``, the article's variance-preserving process of alpha carbons, or ``"brownian"``, that of its code, on to
        1,500 Angstrom. Orientations perform Brownian motion either way.
    members: number of residues, for a model of one protein: each then has an embedding of its own. None: for any protein.
    reference: whether the descriptor's reference structure is read.
    known: of one protein, structures at most whose mixture answers where noise hides single residues (:mod:`.known`).
    single, couple: widths of the descriptor's embeddings, 0 if there are none.
    scale: Angstrom a unit of ``pos``. seed: of the initial weights.

    Raises
    ------
    IncompatibleError: ``heads`` does not divide ``width``, an unknown process; later, a descriptor without what the network reads.
    """

    def __init__(
        self, width: int = 128, heads: int = 4, layers: int = 4, *, ffn: int = 2, pair: int = 32, heard: int = 16, basis: int = 16,
        process: str = "ou", members: int | None = None, reference: bool = False, known: int = 0, single: int = 0,
        couple: int = 0, scale: float = 10.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads or process not in _SCHEDULES:
            raise IncompatibleError(
                f"expected heads that divide width and a process in {sorted(_SCHEDULES)}, got {heads}, {width} and {process!r}."
            )
        if known and not members:
            raise IncompatibleError(f"known structures are of one protein, got {known} for any: give members.")
        self.config = {
            "width": width, "heads": heads, "layers": layers, "ffn": ffn, "pair": pair, "heard": heard, "basis": basis,
            "process": process, "members": members, "reference": reference, "known": known, "single": single, "couple": couple,
            "scale": scale, "seed": seed,
        }  # fmt: skip
        self.coordinates, self.schedule, self.heads = Backbone(scale), _SCHEDULES[process], heads
        with seeded(seed):
            self.kind = nn.Embedding(len(RESIDUES), width)
            self.member = nn.Parameter(0.3 * torch.randn(members, width)) if members else None
            self.given = nn.Linear(single, width, bias=False) if single else None
            self.time = TimeEmbedding(width)
            self.view = View(basis)
            self.apart = nn.Embedding(2 * _APART + 2, pair)
            self.ends = nn.Linear(width, 2 * pair, bias=False)
            self.when = nn.Linear(width, pair)
            self.seen = nn.Linear(self.view.features, pair, bias=False)
            self.known = nn.Linear(self.view.features, pair, bias=False) if reference else None
            self.coupled = nn.Linear(couple, pair, bias=False) if couple else None
            self.bias = nn.Linear(pair, heads * (layers + 2))
            self.heard = nn.Linear(pair, heard, bias=False)
            self.along = nn.Sequential(nn.Linear(ALONG, width), nn.SiLU(), nn.Linear(width, width))
            self.hear = nn.Linear(heads * (heard + (TOLD if reference else 0)), width, bias=False)
            self.blocks = nn.ModuleList(_Block(width, heads, ffn) for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.towards = nn.Linear(width, 2 * width, bias=False)
            inside, ways = n_lengths(heads) + ALONG + (TOLD * heads if reference else 0), heads * (2 if reference else 1) + 2
            self.head = nn.Sequential(nn.Linear(width + inside, width), nn.SiLU(), nn.Linear(width, 2 * ways + 8))
            nn.init.zeros_(self.head[2].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.head[2].bias)  # type: ignore[arg-type]
            self.known_structures = KnownStructures(members, width, known, _HIDDEN / scale) if members and known else None

    def process(self, descriptor: Descriptor) -> Joint:
        """The process that noises proteins of this many residues."""
        n = int((descriptor.node[:, 1] == 0).sum())
        return Joint(pos=Diffusion(ZeroCentroid(n), self.schedule), rot=Diffusion(SO3(n), Geometric(*_ANGLE)))

    def look_at(self, state: State) -> None:
        """Know the structures of these frames, if any can be known."""
        if self.known_structures is not None:
            like = self.norm.weight
            self.known_structures.start(state["pos"].to(like), rotation_matrix(state["rot"]).to(like))

    def forward(self, state: State, t: Tensor, descriptor: Descriptor) -> tuple[Tangent, Tangent]:
        """Noise departures and log-variances of B states at times ``t`` (1,) or (B,)."""
        like = self.norm.weight
        known, t = residues(descriptor).to(like.device), t.reshape(-1)
        size = torch.hypot(self.schedule.alpha(t), self.schedule.sigma(t)).reshape(-1, 1, 1)
        pos, turn = (state["pos"] / size).to(like), rotation_matrix(state["rot"]).to(like)
        time = self.time(self._clock(t))
        reference = None if self.known is None else self._reference(descriptor)
        recollection = None
        if self.known_structures is not None:
            noise, angle = self._noise(t)
            recollection = self.known_structures(pos, turn, self._signal(t), noise / size.to(like), angle, time)
        active, x = F.silu(time), self._residues(known, descriptor)
        pair = self._pairs(pos, turn, x, active, known, descriptor.couple, reference)
        first, *biases, last = self._biases(pair)
        told = None if reference is None else Told(*reference, pos, turn, self._signal(t), *self._noise(t))
        chain = along(pos, turn, known.follows(), self.coordinates.scale)
        x = x + time[:, None] + self._hear(first, pair, told) + self.along(chain[1])
        for block, bias in zip(self.blocks, biases, strict=True):
            x = block(x, bias, pos, turn, active)
        return self._read(self.norm(x), last, pos, turn, told, chain, recollection, t)

    def _clock(self, t: Tensor) -> Tensor:
        """(T,) what the network knows of the time: the log signal-to-noise ratio of positions, which no schedule changes."""
        return (10.0 - 2 * torch.log(self.schedule.alpha(t) / self.schedule.sigma(t))) / 15.0

    def _signal(self, t: Tensor) -> Tensor:
        """(T, 1, 1) how large the clean structure is in the positions that the network sees."""
        alpha = self.schedule.alpha(t)
        return (alpha / torch.hypot(alpha, self.schedule.sigma(t))).reshape(-1, 1, 1).to(self.norm.weight)

    def _noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(T, 1, 1) the noise of positions and of orientations, no less than what features see."""
        pos, rot = (s.sigma(t).reshape(-1, 1, 1).to(self.norm.weight) for s in (self.schedule, Geometric(*_ANGLE)))
        return torch.hypot(pos, torch.full_like(pos, _FINE / self.coordinates.scale)), torch.hypot(rot, torch.full_like(rot, _FINE_ANGLE))

    def _reference(self, descriptor: Descriptor) -> tuple[Tensor, Tensor]:
        """Positions (N, 3) and orientations (N, 3, 3) of the reference structure."""
        if descriptor.reference is None:
            raise IncompatibleError("this model reads a reference structure: give protein() its positions.")
        state, _ = self.coordinates.encode(descriptor.reference, descriptor)
        return state["pos"][0].to(self.norm.weight), rotation_matrix(state["rot"][0]).to(self.norm.weight)

    def _residues(self, known: Residues, descriptor: Descriptor) -> Tensor:
        """(N, W) features of residues that have seen nothing."""
        x = self.kind(known.kind)
        if self.member is not None:
            if len(self.member) != len(x):
                raise IncompatibleError(f"this model serves one protein of {len(self.member)} residues, got {len(x)}: train one for any.")
            x = x + self.member
        if self.given is not None:
            x = x + self.given(_embedding(descriptor.single, self.given.in_features, "single").to(x))
        return x

    def _pairs(
        self, pos: Tensor, turn: Tensor, x: Tensor, active: Tensor, known: Residues, couple: Tensor | None,
        reference: tuple[Tensor, Tensor] | None,
    ) -> Tensor:  # fmt: skip
        """(B, P, N, N): row i, column j is what i knows of j."""
        apart = (known.number - known.number[:, None]).clamp(-_APART, _APART) + _APART
        apart = torch.where(known.chain == known.chain[:, None], apart, 2 * _APART + 1)
        own, other = self.ends(x).chunk(2, -1)
        fixed = self.apart(apart) + own[:, None] + other
        if self.coupled is not None:
            fixed = fixed + self.coupled(_embedding(couple, self.coupled.in_features, "couple").to(x))
        if self.known is not None and reference is not None:
            seen = self.view(*(part[None] for part in reference), self.coordinates.scale)
            fixed = fixed + channels(self.known.weight, seen)[0].permute(1, 2, 0)
        geometry = channels(self.seen.weight, self.view(pos, turn, self.coordinates.scale))
        return F.silu(geometry + (fixed.permute(2, 0, 1).contiguous() + self.when(active)[..., None, None]))

    def _biases(self, pair: Tensor) -> list[Tensor]:
        """(B, heads, N, N) for every layer, the one that listens and the one that is read."""
        found = channels(self.bias.weight, pair) + self.bias.bias[:, None, None]
        return list(found.unflatten(1, (-1, self.heads)).unbind(1))

    def _hear(self, bias: Tensor, pair: Tensor, told: Told | None) -> Tensor:
        """(B, N, W) of the pairs of each residue, as their own bias weighs them."""
        weights = bias.softmax(-1)
        heard = channels(self.heard.weight, pair).permute(0, 2, 3, 1)
        found = [torch.matmul(weights.transpose(1, 2), heard).flatten(2)]
        if told is not None:
            found.append(told(weights)[1].flatten(2))
        return self.hear(torch.cat(found, -1))

    def _read(
        self, x: Tensor, bias: Tensor, pos: Tensor, turn: Tensor, told: Told | None, chain: tuple[Tensor, Tensor],
        recollection: Recollection | None, t: Tensor,
    ) -> tuple[Tangent, Tangent]:  # fmt: skip
        """Tangents of the state's components, and log-variances: of alpha carbons one a structure, as their space wants it."""
        query, key = split_heads(self.towards(x), 2, self.heads, x.dtype)
        weights = attention(query, key, bias).view_as(bias)
        local = displacements(weights, pos, turn)
        features, ways = [x, local.flatten(2), lengths(local), chain[1]], torch.cat([local, chain[0]], 2)
        ways = torch.stack([ways, ways], 2)
        if told is not None:
            towards, seen = told(weights)
            features.append(seen.flatten(2))
            ways = torch.cat([ways, towards], 3)
        gates, free, widths = self.head(torch.cat(features, -1)).split([2 * ways.shape[3], 6, 2], -1)
        # Of the residue's own frame: a shift, and the axis of a turn.
        own = (gates.unflatten(-1, (2, -1, 1)) * ways).sum(3) + free.unflatten(-1, (2, 3))
        answer = (turn[:, :, None] @ own[..., None])[..., 0]
        shift, twist = (answer if recollection is None else recollection.mend(answer)).unbind(2)
        noise, floors = {}, self._noise(t)
        for name, part, schedule, least in zip(("pos", "rot"), (shift, twist), (self.schedule, Geometric(*_ANGLE)), floors, strict=True):
            sigma = schedule.sigma(t).reshape(-1, 1, 1).to(x)
            noise[name] = part * (least / sigma) / sigma
        return noise, {"pos": widths[..., :1].mean(1, keepdim=True), "rot": widths[..., 1:]}


class _Block(nn.Module):
    """Pre-LN attention and feed-forward, scaled by the time; attention also passes on displacements."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width + n_lengths(heads), width, bias=False)
        self.widen = nn.Linear(width, ffn * width, bias=False)
        self.narrow = nn.Linear(ffn * width, width, bias=False)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, bias: Tensor, pos: Tensor, turn: Tensor, time: Tensor) -> Tensor:
        """``x`` (B, N, W), ``bias`` (B, heads, N, N), frames, ``time`` (T, W) -> (B, N, W)."""
        b, n, w = x.shape
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(time)[:, None].chunk(6, dim=-1)
        query, key, value = split_heads(self.qkv(modulated_norm(x, scale1, shift1)), 3, self.heads, x.dtype)
        weights = attention(query, key, bias)
        values = torch.bmm(weights, value).view(b, self.heads, n, -1).transpose(1, 2).flatten(2)
        local = displacements(weights.view_as(bias), pos, turn)
        x = torch.addcmul(x, self.mix(torch.cat([values, local.flatten(2), lengths(local)], -1)), 1 + gate1)
        hidden = F.silu(self.widen(modulated_norm(x, scale2, shift2)))
        return torch.addcmul(x, self.narrow(hidden), 1 + gate2)


def _embedding(given: Tensor | None, width: int, name: str) -> Tensor:
    if given is None or given.shape[-1] != width:
        found = "none" if given is None else f"{given.shape[-1]} channels"
        raise IncompatibleError(f"this model reads {name} embeddings of {width} channels, got {found}: give them to protein().")
    return given
