"""Checks of coordinates and energies."""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor

from ..diffusion.processes import Joint
from ..diffusion.spaces import ZeroCentroid
from ..energy import Energy
from ..random import Streams
from ..system.descriptor import Descriptor
from ..system.graph import neighbours, refine
from ..types import Geometry, State
from .diffusion import close, require

__all__ = ["check_coordinates", "check_energy"]


def check_coordinates(
    coordinates, process: Joint, geometry: Geometry, descriptor: Descriptor, *, tolerance: float = 1e-7, seed: int = 0
) -> None:
    """decode(encode(g)) is g up to the gauge, mirror images apart; encode undoes decode and does not see the pose; log|det| is
    that of the autodiff Jacobian, with the volume of what encode forgets.

    ``process`` says which space each component lives on; ``geometry`` (B, N, 3), valid structures.
    """
    with torch.no_grad():
        state, log_det = coordinates.encode(geometry, descriptor)
        require(coordinates.valid(state, descriptor), "valid() refuses a structure that encode() made a state of.")
        decoded = coordinates.decode(state, descriptor)
        again, _ = coordinates.encode(decoded, descriptor)
        same_state(process, again, state, tolerance, "encode(decode(state))")
        close(coordinates.log_volume(state, descriptor), -log_det, 1e-9, "log_volume against -log|det| of encode")
        posed = coordinates.pose(geometry, Streams(seed, range(len(geometry.positions))))
        same_state(process, coordinates.encode(posed, descriptor)[0], state, tolerance, "encode(pose(g))")
        forgotten = _forgotten(coordinates, process, geometry, descriptor, state)
        found = _relabelled(decoded.positions, geometry.positions, forgotten)
        wanted = geometry.positions.double()
        close(_distances(found), _distances(wanted), tolerance, "distances of decode(encode(g))")
        close(
            _volumes(found),
            _volumes(wanted),
            10 * tolerance,
            "signed volumes of decode(encode(g)), which mirror images flip",
        )
        if "rotation" not in coordinates.gauge:
            close(
                found - found.mean(1, keepdim=True),
                wanted - wanted.mean(1, keepdim=True),
                tolerance,
                "decode(encode(g))",
            )
    wanted_det = _log_det(coordinates, process, geometry, descriptor) - len(forgotten) * math.log(3)
    close(log_det, wanted_det, 10 * tolerance, "log|det| of encode against the autodiff Jacobian")


def same_state(process: Joint, found: State, wanted: State, tolerance: float, what: str) -> None:
    """Raise AssertionError unless two states are the same points of their spaces."""
    for name, part in process.items():
        gap = part.space.log(wanted[name], found[name])
        close(gap, torch.zeros_like(gap), tolerance, f"{what}, component {name}")


def check_energy(
    energy: Energy,
    geometry: Geometry,
    *,
    tolerance: float = 1e-5,
    step: float = 1e-4,
    translation: bool = True,
    seed: int = 0,
) -> None:
    """The gradient is that of central differences; structures of a batch do not see each other; NaN positions give +inf.

    ``step`` in Angstrom; ``translation`` says that moving everything together changes nothing.
    """
    start = geometry.positions.detach().double()
    rng = torch.Generator().manual_seed(seed)

    def at(positions: Tensor) -> Tensor:
        with torch.no_grad():
            return energy(Geometry(positions, geometry.cell)).double()

    leaf = start.clone().requires_grad_()
    u = energy(Geometry(leaf, geometry.cell))
    require(u.shape == (len(start),), f"u has shape {tuple(u.shape)}, wanted ({len(start)},).")
    (gradient,) = torch.autograd.grad(u.double().sum(), leaf)
    require(
        u.isfinite() & gradient.flatten(1).isfinite().all(1),
        "u and its gradient must be finite at the given structures.",
    )
    for _ in range(3):
        way = torch.randn(start.shape, generator=rng, dtype=torch.float64)
        way = way / way.flatten(1).norm(dim=1)[:, None, None]
        slope = (at(start + step * way) - at(start - step * way)) / (2 * step)
        close((gradient * way).flatten(1).sum(1), slope, tolerance, "gradient against central differences")
    order = torch.randperm(len(start), generator=rng)
    with torch.no_grad():
        cell = None if geometry.cell is None else geometry.cell[order]
        shuffled = energy(Geometry(start[order], cell)).double()
    close(shuffled, u[order], tolerance * 1e-2, "u of a shuffled batch")
    if translation:
        close(at(start + torch.tensor([1.0, -2.0, 0.5])), u, tolerance, "u after a translation")
    broken = start.clone()
    broken[0, 0, 0] = math.nan
    found = at(broken)
    require(found[0] == math.inf, f"u of a structure with a NaN must be +inf, got {float(found[0])}.")
    close(found[1:], u[1:], tolerance, "u of the others in a batch with a NaN")


def _log_det(coordinates, process: Joint, geometry: Geometry, descriptor: Descriptor) -> Tensor:
    """log|d state / d geometry| from the autodiff Jacobian on the zero-centroid subspace, rotation and torus units included."""
    leaf = geometry.positions.double().clone().requires_grad_()
    state, _ = coordinates.encode(Geometry(leaf, geometry.cell), descriptor)
    moved = process.log({name: x.detach() for name, x in state.items()}, state)
    flat = torch.cat([moved[name].flatten(1) @ part.space.basis().flatten(1).T for name, part in process.items()], dim=1)
    rows = [torch.autograd.grad(flat[:, i].sum(), leaf, retain_graph=True)[0].flatten(1) for i in range(flat.shape[1])]
    jacobian = torch.stack(rows, dim=1) @ ZeroCentroid(leaf.shape[1]).basis().flatten(1).T
    found = 0.5 * torch.linalg.slogdet(jacobian @ jacobian.transpose(1, 2)).logabsdet
    if "rotation" in coordinates.gauge:
        # The orbit of a structure under rotation has the volume 8 pi^2 sqrt(det I), I the unit-mass tensor of inertia.
        x = leaf.detach() - leaf.detach().mean(1, keepdim=True)
        square = torch.einsum("bni,bnj->bij", x, x)
        inertia = torch.einsum("bii->b", square)[:, None, None] * torch.eye(3, dtype=torch.float64) - square
        found = found - math.log(8 * math.pi**2) - 0.5 * torch.linalg.slogdet(inertia).logabsdet
    return found - sum(part.space.log_volume for part in process.values())


def _forgotten(coordinates, process, geometry, descriptor, state) -> list[tuple[int, int, int]]:
    """Groups of three equivalent end atoms whose cyclic relabelling leaves the state alone: labels are gauge as well."""
    classes, bonded = refine(descriptor.numbers, descriptor.bonds), neighbours(descriptor.n_atoms, descriptor.bonds)
    groups = []
    for centre in range(descriptor.n_atoms):
        ends = [i for i in bonded[centre] if len(bonded[i]) == 1]
        for group in combinations(ends, 3):
            if len({classes[i] for i in group}) > 1:
                continue
            turned, _ = coordinates.encode(Geometry(_turn(geometry.positions, group, 1)), descriptor)
            gaps = [
                part.space.log(state[name], turned[name]).abs().max()
                for name, part in process.items()
                if part.space.dim
            ]
            if max(float(gap) for gap in gaps) < 1e-6:
                groups.append(group)
    return groups


def _relabelled(found: Tensor, wanted: Tensor, groups: list[tuple[int, int, int]]) -> Tensor:
    """``found`` with each group's labels turned to fit the distances of ``wanted``."""
    loose = {i for group in groups for i in group}
    fixed = [i for i in range(found.shape[1]) if i not in loose]
    for group in groups:
        seen = torch.tensor([*group, *fixed])
        trials = torch.stack([_turn(found, group, turn) for turn in range(3)])
        misfit = [(_distances(trial[:, seen]) - _distances(wanted[:, seen])).abs().amax((1, 2)) for trial in trials]
        found = trials[torch.stack(misfit).argmin(0), torch.arange(len(found))]
    return found


def _turn(positions: Tensor, group: tuple[int, int, int], turn: int) -> Tensor:
    order = torch.arange(positions.shape[1])
    order[list(group)] = torch.tensor(group).roll(turn)
    return positions[:, order].double()


def _distances(positions: Tensor) -> Tensor:
    return (positions[:, :, None] - positions[:, None]).double().norm(dim=-1)


def _volumes(positions: Tensor) -> Tensor:
    """Signed volumes of the tetrahedra of consecutive atoms (B, N - 3)."""
    corners = (
        positions.double().unfold(1, 4, 1) if positions.shape[1] > 3 else positions.new_zeros(len(positions), 0, 3, 4)
    )
    return torch.linalg.det(corners[..., 1:] - corners[..., :1])
