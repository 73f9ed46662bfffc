"""A Graphormer over a slab and its periodic images that moves what stands on it: atoms, rigid molecules, a yielding surface."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..coordinates.adsorbate import Adsorbate
from ..diffusion import SO3, Diffusion, Euclidean, Geometric, Joint, Lattice
from ..errors import IncompatibleError
from ..system.descriptor import Descriptor
from ..system.elements import N_D_BAND, N_PROPERTIES, covalent_radii, d_band, properties
from ..system.surface import ADSORBATE, FREE, Frame, frame_of, guest_of, role_of
from ..types import State, Tangent
from .embed import TimeEmbedding, seeded
from .periodic import (
    EnvelopedBasis,
    ImageAttention,
    Images,
    Region,
    Surroundings,
    images_within,
    of_parents,
    surroundings,
)

__all__ = ["AdsorptionGraphormer"]

_ATOMS = 4  # how far into a molecule atoms are told apart: the binding one, the next, ...


class _Scene(NamedTuple):
    """What the decoder needs of a system: mobile atoms (Q,), which of them are the adsorbate's (Q,), its atom that binds, the
    images, who must not see whom (Q, K), radii (N,) Angstrom, the normal (3,)."""

    mobile: Tensor
    guest: Tensor
    anchor: int
    images: Images
    skip: Tensor
    radii: Tensor
    normal: Tensor


class AdsorptionGraphormer(nn.Module):
    """Noise departures and log-variances of the components of :class:`Adsorbate`, for any slab and adsorbate.

    The slab's reference structure is encoded once, without the time: attention over all images within ``cutoff``. Mobile atoms
    (the adsorbate's, and slab atoms that may relax) then attend to the slab where it stands, and to each other; vectors to
    their neighbours give translation, torque and displacement, so that the answer turns and shifts with the structure, does
    not change when the adsorbate leaves the cell on one side and enters on the other, and is the same in a supercell. An
    adsorbate does not feel its own images.

    Parameters
    ----------
    width, heads, layers: of the decoder; encoder: layers over the slab; basis: Gaussians of the distance.
    cutoff: Angstrom. channels: vectors an atom. conditions: how many numbers ``descriptor.conditions`` holds.
    fade: Angstrom, the wavelength at whose pace noise drowns the scores: one number for all cells, or supercells would differ.
    coordinates: config of :class:`Adsorbate`. seed: of the initial weights.
    d_band: read of the slab's atoms their d band alone (:func:`.elements.d_band`), which carries over from few metals to others, or,
    where the descriptor has one, its ``single`` (N, 3): the d band of metals that are no element. Without ``d_band``, ``single`` (N, 5)
    is by how much atoms depart from their element's properties.
    """

    def __init__(
        self, width: int = 64, heads: int = 4, layers: int = 2, encoder: int = 2, basis: int = 24, *, cutoff: float = 6.0,
        channels: int = 12, conditions: int = 0, fade: float = 5.0, coordinates: dict | None = None, seed: int = 0, d_band: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.coordinates = Adsorbate(**(coordinates or {}))
        self.config = {
            "width": width, "heads": heads, "layers": layers, "encoder": encoder, "basis": basis, "cutoff": cutoff, "channels": channels,
            "conditions": conditions, "fade": fade, "coordinates": self.coordinates.config, "seed": seed, "d_band": d_band,
        }  # fmt: skip
        self.cutoff, self.channels, self.fade = float(cutoff), channels, float(fade)
        with seeded(seed):
            self.element = nn.Linear(N_PROPERTIES, width)
            self.place = nn.Parameter(0.3 * torch.randn(2 + _ATOMS, width))
            self.time = TimeEmbedding(width)
            self.given = nn.Linear(conditions, width, bias=False) if conditions else None
            self.radial = EnvelopedBasis(basis, cutoff)
            self.slab_bias, self.bias = nn.Linear(basis, heads * encoder), nn.Linear(basis, heads * layers)
            self.slab_near, self.near = nn.Linear(basis, width, bias=False), nn.Linear(basis, width, bias=False)
            self.sent = nn.Linear(width, width, bias=False)
            self.slab_blocks = nn.ModuleList(ImageAttention(width, heads, 2, seed + 1 + k) for k in range(encoder))
            self.blocks = nn.ModuleList(ImageAttention(width, heads, 2, seed + 100 + k) for k in range(layers))
            self.pulls = nn.ModuleList(_Pull(width, basis, channels) for _ in range(layers))
            self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3 * (channels + 1) + 4))
            nn.init.zeros_(self.head[2].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.head[2].bias)  # type: ignore[arg-type]
            self.metal = nn.Linear(N_D_BAND, width) if d_band else None

    def process(self, descriptor: Descriptor) -> Joint:
        """The process that noises this system: the same law in Angstrom whatever the cell, so that the network transfers."""
        frame, role = frame_of(descriptor), role_of(descriptor)
        parts = {
            "plane": Diffusion(Lattice(frame.vectors, self.fade), Geometric(0.02, 5.0)),
            "height": Diffusion(Euclidean(1), Geometric(0.02 / self.coordinates.width, 2.0 / self.coordinates.width)),
        }
        if int((role == ADSORBATE).sum()) > 1:
            parts["turn"] = Diffusion(SO3(), Geometric(0.02, 3.0))
        free = int((role == FREE).sum())
        if free:
            parts["surface"] = Diffusion(Euclidean(3 * free), Geometric(0.05, 3.0))
        return Joint(**parts)

    def forward(self, state: State, t: Tensor, descriptor: Descriptor) -> tuple[Tangent, Tangent]:
        """Noise departures and log-variances of B states at times ``t`` (1,) or (B,).

        ``descriptor`` is of one system; or its ``conditions`` are (B, C), ``numbers`` (B, N) for adsorbates of one atom, which
        alone may differ, and ``single`` (B, N, 3): what shares a slab's structure is trained on together.
        """
        given, descriptor = descriptor, _first(descriptor)
        frame = frame_of(descriptor)
        # Geometry is worked out where the descriptor is, in small steps that a GPU would wait for; features are where the weights are.
        state = {name: x.to(descriptor.mobile.device) for name, x in state.items()}
        state["plane"] = frame.home(state["plane"].double())
        positions = self.coordinates.decode(state, descriptor).positions.to(self.place)
        shifted = self.coordinates.relaxation * state["surface"].double().unflatten(1, (-1, 3)) if "surface" in state else None
        # Slab atoms that see each other may both have moved; what is farther off than the cutoff is noise that no slab has.
        slack = 0.0 if shifted is None else min(self.cutoff, 2 * float(shifted.detach().norm(dim=-1).max()))
        scene = self._scene(descriptor, frame, slack)
        slab, active = self._slab(descriptor, frame), self._active(t, given)
        x, vectors = self._look(positions, slab, active, scene, given.numbers)
        return self._read(x, vectors, positions, scene, frame.axes.to(positions))

    def _active(self, t: Tensor, descriptor: Descriptor) -> Tensor:
        """(T, W) of times (T,) and the descriptor's conditions."""
        embedded, wanted = self.time(t.reshape(-1)), 0 if self.given is None else self.given.in_features
        if descriptor.conditions.shape[-1] != wanted:
            raise IncompatibleError(
                f"the network is conditioned on {wanted} numbers, the descriptor has {descriptor.conditions.shape[-1]}: set its conditions."
            )
        return F.silu(embedded if self.given is None else embedded + self.given(descriptor.conditions.to(self.place)))

    def _scene(self, descriptor: Descriptor, frame: Frame, slack: float) -> _Scene:
        """``slack`` Angstrom: by how much atoms of the slab may be nearer to each other than in the reference."""
        role, order = role_of(descriptor), guest_of(descriptor)
        reference = descriptor.reference.positions[0].double()  # type: ignore[union-attr]
        mobile, guest = descriptor.mobile.nonzero()[:, 0], role == ADSORBATE
        vectors = frame.vectors @ frame.axes
        # The adsorbate's first atom is in the home cell, the others stand about it; slab atoms are where the reference has them.
        seen = (reference @ torch.linalg.pinv(vectors))[role == FREE]
        region = Region(*(torch.cat([seen, seen.new_full((1, 2), edge)]).aminmax(dim=0)[k] for k, edge in enumerate((-0.5, 0.5))))
        size = float(self.coordinates.template(descriptor).norm(dim=1).max())
        images = images_within(reference, vectors, self.cutoff + size + slack, region, loose=guest)
        if not len(seen):
            # Nothing but the adsorbate moves: its images would be seen by no one.
            keep = ~guest[images.parent] | images.home
            images = Images(*(x[keep] for x in images))
        skip = (mobile[:, None] == images.parent) & images.home | guest[mobile][:, None] & guest[images.parent] & ~images.home
        radii = covalent_radii(descriptor.numbers).to(self.place)
        there = self.place.device
        images = Images(images.parent.to(there), images.shift.to(self.place), images.home.to(there))
        return _Scene(mobile, guest[mobile], int(order[0]), images, skip.to(there), radii, frame.normal.to(self.place))

    def _embed(self, descriptor: Descriptor) -> Tensor:
        """(B or 1, N, W): what an atom is, and which of the adsorbate's it is."""
        role = role_of(descriptor)
        place = torch.where(role == ADSORBATE, 1 + descriptor.node[:, 2].clamp(1, _ATOMS), (role == FREE).long())
        own = properties(descriptor.numbers)
        if self.metal is None and descriptor.single is not None:
            own = own + descriptor.single
        element = self.element(own.to(self.place))[None]
        if self.metal is not None:
            slab = role != ADSORBATE
            told = d_band(descriptor.numbers[slab]) if descriptor.single is None else descriptor.single[..., slab, :]
            told = self.metal(told.to(self.place)).reshape(-1, int(slab.sum()), element.shape[-1])
            element = element.expand(len(told), -1, -1).index_copy(1, slab.nonzero()[:, 0].to(told.device), told)
        return element + self.place[place]

    def _slab(self, descriptor: Descriptor, frame: Frame) -> Tensor:
        """(B or 1, N, W): features of all atoms, those of the slab aware of their surroundings in the reference structure."""
        fixed = (role_of(descriptor) != ADSORBATE).nonzero()[:, 0]
        reference = descriptor.reference.positions[0].double()[fixed]  # type: ignore[union-attr]
        vectors = frame.vectors @ frame.axes
        region = Region(*(reference @ torch.linalg.pinv(vectors)).aminmax(dim=0))
        images = images_within(reference, vectors, self.cutoff, region)
        own = (torch.arange(len(fixed), device=fixed.device)[:, None] == images.parent) & images.home
        seen = surroundings(reference[None], reference[None], images, self.cutoff, own)
        seen = Surroundings(seen.parent.to(self.place.device), *(x.to(self.place) for x in seen[1:]))
        radii = covalent_radii(descriptor.numbers[fixed]).to(self.place)
        radial = self.radial(seen.distance, radii[:, None] + radii[seen.parent]) * seen.near[..., None]
        embedded = self._embed(descriptor)
        x = embedded[:, fixed]
        x = x + (self.slab_near(radial) * of_parents(self.sent(x), seen.parent)).sum(2)
        biases = self.slab_bias(radial).permute(0, 3, 1, 2).chunk(len(self.slab_blocks), 1)
        still = torch.zeros_like(x[:1, 0])
        for block, bias in zip(self.slab_blocks, biases, strict=True):
            x = block(x, x, seen, bias, still)
        return embedded.index_copy(1, fixed.to(x.device), x)

    def _look(self, positions: Tensor, slab: Tensor, active: Tensor, scene: _Scene, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, Q, W) and vectors (B, Q, channels, 3), of all layers together, of the mobile atoms."""
        seen = surroundings(positions[:, scene.mobile], positions, scene.images, self.cutoff, scene.skip)
        own, x = scene.radii[scene.mobile][:, None], slab[:, scene.mobile].expand(len(positions), -1, -1)
        if numbers.dim() == 2:
            own = covalent_radii(numbers[:, scene.mobile]).to(own)[..., None]
            x = x + self.element(properties(numbers[:, scene.mobile]).to(own)) - self.element(properties(numbers[:1, scene.mobile]).to(own))
        radial = self.radial(seen.distance, own + scene.radii[seen.parent]) * seen.near[..., None]
        x = x + (self.near(radial) * of_parents(self.sent(slab), seen.parent)).sum(2)
        biases = self.bias(radial).permute(0, 3, 1, 2).chunk(len(self.blocks), 1)
        vectors = x.new_zeros(*x.shape[:2], self.channels, 3)
        for block, pull, bias in zip(self.blocks, self.pulls, biases, strict=True):
            x = block(x, slab, seen, bias, active)
            x, vectors = pull(x, slab, radial, seen, scene.normal, vectors)
        return x, vectors

    def _read(self, x: Tensor, vectors: Tensor, positions: Tensor, scene: _Scene, axes: Tensor) -> tuple[Tangent, Tangent]:
        """Tangents of the state's components from the mobile atoms' vectors."""
        gates, normal = self.head(F.silu(x)), scene.normal
        vectors = torch.cat([vectors, normal.expand(*vectors.shape[:2], 1, 3)], 2)
        size = self.channels + 1
        push, twist, yields = ((gates[..., k * size : (k + 1) * size, None] * vectors).sum(2) for k in range(3))
        spread = gates[..., 3 * size :]
        guest = scene.guest
        whole, widths = push[:, guest].sum(1), spread[:, guest].mean(1)
        noise = {"plane": whole @ axes.T, "height": (whole @ normal)[:, None]}
        log_spread = {"plane": widths[:, :1], "height": widths[:, 1:2]}
        if int(guest.sum()) > 1:
            arms = positions[:, scene.mobile[guest]] - positions[:, scene.anchor, None]
            noise["turn"] = torch.linalg.cross(arms, twist[:, guest]).sum(1)
            log_spread["turn"] = widths[:, 2:3]
        if not bool(guest.all()):
            noise["surface"] = yields[:, ~guest].flatten(1)
            log_spread["surface"] = spread[:, ~guest, 3:].expand(-1, -1, 3).flatten(1)
        return noise, log_spread


def _first(descriptor: Descriptor) -> Descriptor:
    """The first system of several on one slab. Raises IncompatibleError where more than a lone atom differs."""
    numbers, conditions = descriptor.numbers, descriptor.conditions
    if numbers.dim() == 2:
        if int(descriptor.mobile.sum()) > 1 or bool((numbers != numbers[:1])[:, ~descriptor.mobile].any()):
            raise IncompatibleError("systems may share a batch if they differ in one mobile atom or in conditions; these differ in more.")
        numbers = numbers[0]
        descriptor = replace(descriptor, numbers=numbers, node=torch.cat([numbers[:, None], descriptor.node[:, 1:]], 1))
    return replace(descriptor, conditions=conditions[0]) if conditions.dim() == 2 else descriptor


class _Pull(nn.Module):
    """Vectors towards neighbours, weighted by what both are and how far apart; their lengths and angles go back into the features."""

    def __init__(self, width: int, basis: int, channels: int) -> None:
        super().__init__()
        self.receiver, self.sender = nn.Linear(width, channels), nn.Linear(width, channels)
        self.radial = nn.Linear(basis, channels, bias=False)
        self.back = nn.Sequential(nn.Linear(3 * channels, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, slab: Tensor, radial: Tensor, seen: Surroundings, normal: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, Q, W) of the atoms and (B or 1, S, W) of what they see, its radial basis, and the vectors (B, Q, channels, 3) of
        layers before -> features, and vectors with this layer's."""
        weights = self.radial(radial) * of_parents(1 + self.sender(slab), seen.parent)
        vectors = torch.einsum("bqmc,bqmx->bqcx", weights, seen.unit) * (1 + self.receiver(x))[..., None]
        total = before + vectors
        invariants = torch.cat([(total * total).sum(-1), total @ normal, (total * total.roll(1, 2)).sum(-1)], -1)
        return x + self.back(torch.asinh(invariants)), total
