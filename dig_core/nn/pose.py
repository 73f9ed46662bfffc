"""A Graphormer over a ligand and its pocket: how noise has shifted, turned and folded the ligand, for any ligand and any pocket."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..coordinates.bound import Bound
from ..coordinates.complex import complex_of
from ..coordinates.scene import MAX_PATH, Scene
from ..diffusion import SO3, Diffusion, Euclidean, Geometric, Joint, Karras, LogSNR, Torus
from ..system.descriptor import Descriptor
from ..system.elements import N_PROPERTIES
from ..types import State, Tangent
from .embed import CategoryEmbedding, TimeEmbedding, seeded
from .pulls import Basis, Pull, Seen, ToldAttention, Wall, distances, rows_at

__all__ = ["PoseGraphormer"]

_SHORT, _LONG = 9.0, 26.0  # Angstrom: reach of the distances between atoms, and between atoms and residues
_SHARP = {"place": 0.05, "turn": 0.05, "torsion": 0.15}  # noise below which the answer is not read more sharply, units of the state
_KINDS = 32


class PoseGraphormer(nn.Module):
    """Noise departures and log-variances of the components of :class:`~dig_core.coordinates.bound.Bound`, for any ligand and pocket.

    The pocket is encoded once, without the time: atoms see their neighbours, residues each other. The ligand's heavy atoms then attend to
    each other, to all residues and to the pocket atoms nearest to them. Vectors towards what an atom sees give its displacement, gated
    for each component; the least rigid motion and the turns about bonds that make up for them are the answer, together with numbers read
    from the features at each internal coordinate. The answer turns and shifts with the complex.

    Parameters
    ----------
    width, heads, layers: of the ligand's part; encoder: layers over the residues; basis: Gaussians of a distance.
    neighbours: pocket atoms that a ligand atom sees. channels: vectors an atom. coordinates: config of ``Bound``. seed: of the weights.
    """

    def __init__(
        self, width: int = 96, heads: int = 6, layers: int = 4, encoder: int = 2, basis: int = 24, *, neighbours: int = 24,
        channels: int = 16, coordinates: dict | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.coordinates = Bound(**(coordinates or {}))
        self.config = {
            "width": width, "heads": heads, "layers": layers, "encoder": encoder, "basis": basis, "neighbours": neighbours,
            "channels": channels, "coordinates": self.coordinates.config, "seed": seed,
        }  # fmt: skip
        self.heads, self.neighbours, self.channels = heads, neighbours, channels
        with seeded(seed):
            self.element, self.wall_element = nn.Linear(N_PROPERTIES, width), nn.Linear(N_PROPERTIES, width)
            self.codes = CategoryEmbedding([7, 17, 9, 2, 5], width, 0.3)
            self.wall_codes = CategoryEmbedding([_KINDS, 17], width, 0.3)
            self.kind = nn.Embedding(_KINDS, width)
            self.path, self.order = nn.Embedding(MAX_PATH + 1, heads * layers), nn.Embedding(5, heads * layers)
            self.time = TimeEmbedding(width)
            self.short, self.long = Basis(basis, _SHORT), Basis(basis, _LONG)
            self.wall_near, self.wall_sent = nn.Linear(basis, width, bias=False), nn.Linear(width, width)
            self.raise_, self.lower = nn.Linear(width, width), nn.Linear(width, width)
            self.wall_bias = nn.Linear(basis, heads * encoder)
            self.wall_blocks = nn.ModuleList(ToldAttention(width, heads) for _ in range(encoder))
            self.bias, self.residue_bias = nn.Linear(basis, heads * layers), nn.Linear(basis, heads * layers)
            self.blocks = nn.ModuleList(ToldAttention(width, heads) for _ in range(layers))
            self.pulls = nn.ModuleList(Pull(width, basis, channels) for _ in range(layers))
            self.gates = _zeroed(width, 3 * channels + 2)
            self.ends = nn.Linear(width, 4 * 64, bias=False)
            self.kinds, self.value = nn.Embedding(8, 64), nn.Linear(3, 64)
            self.read = _zeroed(64, 2)

    def process(self, descriptor: Descriptor) -> Joint:
        """The process that noises this ligand: the same law whatever its size."""
        internal = complex_of(descriptor).internal
        return self.joint(len(internal.centre), len(internal.torsion_atoms))

    def joint(self, shapes: int, torsions: int) -> Joint:
        """The same from the numbers of coordinates."""
        parts = {
            "place": Diffusion(Euclidean(3), Geometric(0.05, 2.0)),
            "turn": Diffusion(SO3(), Geometric(0.05, 3.0)),
            "shape": Diffusion(Euclidean(shapes), LogSNR(4.5, -4.0)),
        }
        return Joint(**parts, **({"torsion": Diffusion(Torus(torsions), Karras(0.1, 2.5))} if torsions else {}))

    def forward(self, state: State, t: Tensor, descriptor: Descriptor) -> tuple[Tangent, Tangent]:
        """Noise departures and log-variances of B states of one complex at times ``t`` (1,) or (B,)."""
        system = complex_of(descriptor)
        # Geometry is worked out where the complex is, whose numbers are the coordinates', features where the weights are.
        ligand = self.coordinates.ligand({name: x.cpu() for name, x in state.items()}, system).to(self.kind.weight)
        which = torch.zeros(len(ligand), dtype=torch.long, device=ligand.device)
        held = {name: x.to(self.kind.weight) for name, x in state.items()}
        held.setdefault("torsion", held["shape"].new_zeros(len(which), 0))
        noise, spread = self.look(held, ligand, t.to(self.kind.weight), system.scene.to(self.kind.weight), which)
        return {n: noise[n] for n in state}, {n: spread[n] for n in state}

    def look(self, state: State, ligand: Tensor, t: Tensor, scene: Scene, which: Tensor) -> tuple[Tangent, Tangent]:
        """The same of padded states, whose atoms are ``ligand`` (B, N, 3) Angstrom; row b is of ligand ``which[b]`` of the scene."""
        wall, active = self._wall(scene), F.silu(self.time(t.reshape(-1)))
        at = ligand.gather(1, scene.atoms[which][..., None].expand(-1, -1, 3))
        x, vectors = self._attend(at, wall, active, scene, which)
        return self._read(x, vectors, at, state, t, scene, which)

    def _wall(self, scene: Scene) -> Wall:
        x = self.wall_element(scene.wall) + self.wall_codes(scene.wall_codes)
        gap = distances(scene.wall_at, scene.wall_at) + 1e3 * (~scene.wall_real)[:, None]
        near = gap.topk(min(self.neighbours, gap.shape[2]), dim=2, largest=False)
        sent = rows_at(self.wall_sent(x), near.indices)
        x = x + (self.wall_near(self.short(near.values)) * sent).sum(2)
        x = x * scene.wall_real[..., None]
        size = scene.residue_kind.shape[1]
        owner = scene.owner[..., None].expand_as(x)
        count = torch.zeros_like(x[:, :size, :1]).scatter_add(1, scene.owner[..., None], scene.wall_real[..., None].to(x))
        residues = x.new_zeros(len(x), size, x.shape[2]).scatter_add(1, owner, self.raise_(x) * scene.wall_real[..., None])
        residues = residues / count.clamp_min(1) + self.kind(scene.residue_kind)
        biases = self.wall_bias(self.long(distances(scene.residue_at, scene.residue_at))).permute(0, 3, 1, 2)
        hidden = (~scene.residue_real)[:, None, None] * -1e4
        still = torch.zeros_like(residues[:, 0])
        for block, bias in zip(self.wall_blocks, biases.chunk(len(self.wall_blocks), 1), strict=True):
            residues = block(residues, residues, bias + hidden, still)
        return Wall(x + rows_at(self.lower(residues), scene.owner), residues)

    def _attend(self, at: Tensor, wall: Wall, active: Tensor, scene: Scene, which: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, L, W) and vectors (B, L, C, 3) of the ligand's heavy atoms."""
        pocket, real = scene.pocket[which], scene.real[which]
        x = (self.element(scene.elements) + self.codes(scene.codes))[which]
        residues, residue_at = wall.residues[pocket], scene.residue_at[pocket]
        # Which pocket atoms are near: of each pocket once, then what the neighbours know.
        with torch.no_grad():
            gap = distances(at, scene.wall_at[pocket]) + 1e3 * (~scene.wall_real[pocket])[:, None]
            near = gap.topk(min(self.neighbours, gap.shape[2]), dim=2, largest=False).indices
        flat = near + (pocket * scene.wall.shape[1])[:, None, None]
        around = F.embedding(flat, scene.wall_at.flatten(0, 1)) - at[:, :, None]
        apart, inside = residue_at[:, None] - at[:, :, None], at[:, None] - at[:, :, None]
        bases = [basis(gap.norm(dim=-1)) for basis, gap in ((self.short, around), (self.long, apart), (self.short, inside))]
        units = [F.normalize(gap, dim=-1) for gap in (around, apart, inside)]
        seen = Seen(flat, units[0], units[1], units[2], bases[0], bases[1], bases[2], scene.residue_real[pocket], real)
        hidden = (~torch.cat([real, scene.residue_real[pocket]], 1))[:, None, None] * -1e4
        graph = (self.path(scene.path) + self.order(scene.order))[which]
        own, other = self.bias(seen.inner) + graph, self.residue_bias(seen.far)
        biases = torch.cat([own, other], 2).permute(0, 3, 1, 2).chunk(len(self.blocks), 1)
        vectors = x.new_zeros(*x.shape[:2], self.channels, 3)
        for block, pull, bias in zip(self.blocks, self.pulls, biases, strict=True):
            x = block(x, torch.cat([x, residues], 1), bias + hidden, active)
            x, vectors = pull(x, wall, residues, seen, vectors)
        return x, vectors

    def _read(
        self, x: Tensor, vectors: Tensor, at: Tensor, state: State, t: Tensor, scene: Scene, which: Tensor
    ) -> tuple[Tangent, Tangent]:
        gates, c = self.gates(F.silu(x)), self.channels
        weight = scene.real[which].to(x)
        weight = weight / weight.sum(1, keepdim=True)
        push, twist, swing = ((gates[..., k * c : (k + 1) * c, None] * vectors).sum(2) for k in range(3))
        pooled = (weight[..., None] * gates[..., 3 * c :]).sum(1)
        every = torch.arange(len(which), device=which.device)
        arms = at - at[every, scene.middle[which]][:, None]
        found = {
            "place": (weight[..., None] * push).sum(1) / self.coordinates.width,
            "turn": _rotation(arms, twist, weight),
        }
        turns, shapes = scene.turns[which], scene.shapes[which]
        folded, spread = self._fold(x, torch.cat([turns, shapes], 1), state, scene, which)
        count = turns.shape[1]
        found["torsion"] = _turned(at, swing, turns, scene.moved[which]) * scene.fold[which] + folded[:, :count]
        noise = {name: part / self._sharp(name, t) for name, part in found.items()}
        noise["shape"] = folded[:, count:]
        log_spread = {"place": pooled[:, :1], "turn": pooled[:, 1:], "torsion": spread[:, :count], "shape": spread[:, count:]}
        return noise, log_spread

    def _fold(self, x: Tensor, atoms: Tensor, state: State, scene: Scene, which: Tensor) -> tuple[Tensor, Tensor]:
        """Two numbers (B, T + S) for each torsion and shape value, from the features of its atoms (B, T + S, 4) and its value."""
        ends = self.ends(x).unflatten(2, (4, -1))
        total = sum(rows_at(ends[:, :, k], atoms[..., k].clamp_min(0)) * (atoms[..., k, None] >= 0) for k in range(4))
        torsion, shape = state["torsion"], state["shape"]
        zero = torch.zeros_like(shape)
        values = torch.cat(
            [torch.stack([torch.zeros_like(torsion), torsion.sin(), torsion.cos()], -1), torch.stack([shape, zero, zero], -1)], 1
        )
        kinds = torch.cat([torch.zeros_like(scene.turns_real, dtype=torch.long), scene.kinds], 1)[which]
        return self.read(F.silu(total + self.kinds(kinds) + self.value(values))).unbind(-1)  # type: ignore[return-value]

    def _sharp(self, name: str, t: Tensor) -> Tensor:
        """What a displacement is divided by to be noise as :meth:`Diffusion.scale` reads it."""
        part = self.joint(1, 1)[name]
        _, sigma = part.levels(t)
        return (sigma**2 + _SHARP[name] ** 2).sqrt() * (sigma if part.space.periodic else part.scale(t).out)


def _rotation(arms: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
    """(B, 3) the small rotation that moves arms (B, L, 3) most nearly by ``shift``, damped where the ligand is short."""
    square = (weight * arms.square().sum(-1)).sum(1)[:, None, None] * torch.eye(3).to(arms)
    inertia = square - torch.einsum("bl,bli,blj->bij", weight, arms, arms) + torch.eye(3).to(arms)
    moment = (weight[..., None] * torch.linalg.cross(arms, shift)).sum(1)
    return torch.linalg.solve(inertia, moment[..., None])[..., 0]


def _turned(at: Tensor, shift: Tensor, turns: Tensor, moved: Tensor) -> Tensor:
    """(B, T) the small turns about bonds that move the atoms beyond them most nearly by ``shift``, damped where these are few."""
    back, front = rows_at(at, turns[..., 2]), rows_at(at, turns[..., 1])
    axis = F.normalize(front - back, dim=-1)
    lever = torch.linalg.cross(axis[:, :, None].expand(-1, -1, at.shape[1], -1), at[:, None] - front[:, :, None])
    return (moved * (lever * shift[:, None]).sum(-1)).sum(2) / ((moved * lever.square().sum(-1)).sum(2) + 1)


def _zeroed(width: int, out: int) -> nn.Linear:
    layer = nn.Linear(width, out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
