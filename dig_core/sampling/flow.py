"""The probability flow (article, eq. 7) on a grid: Runge-Kutta steps, their inverses and their Jacobians."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import IncompatibleError, UnsupportedError
from ..score import ScoreModel
from ..system.descriptor import Descriptor
from ..types import State, Tangent

__all__ = ["T_MIN", "Flow", "backward_steps", "checked_grid", "flow_times"]

T_MIN = 1e-3
"""Where the flow stops: scores read from noise are singular at t = 0, and some schedules jump there."""

_ROWS = 8192
"""Rows of a batched backward pass, to bound memory."""

_MEMORY, _PATIENCE, _ROUNDING = 9, 3, 1e-13
"""Of inverse steps: rounds that are looked back on, rounds without gain after which to stop, and a gap that is none."""


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method: ``stages[i]`` weighs earlier slopes, ``nodes`` are times, ``weights`` the result's."""

    stages: tuple[tuple[float, ...], ...]
    nodes: tuple[float, ...]
    weights: tuple[float, ...]


_TABLEAUX = {
    "heun": Tableau(((), (1.0,)), (0.0, 1.0), (0.5, 0.5)),
    "rk4": Tableau(((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


def checked_grid(grid: Tensor) -> Tensor:
    """(K + 1,) float64 times that rise from 0 to 1, or IncompatibleError."""
    grid = torch.as_tensor(grid, dtype=torch.float64)
    if (
        grid.dim() != 1
        or len(grid) < 2
        or float(grid[0]) != 0.0
        or float(grid[-1]) != 1.0
        or bool((grid.diff() <= 0).any())
    ):
        raise IncompatibleError("grid must rise from 0 to 1 with at least one step in between.")
    return grid


def flow_times(grid: Tensor) -> Tensor:
    """The grid with its first time, 0, moved to ``T_MIN`` (to half the second time on finer grids).

    The flow's law is that of x_t / alpha(t) at this time: data with noise of level sigma / alpha left in.
    """
    times = checked_grid(grid).clone()
    times[0] = min(T_MIN, 0.5 * float(times[1]))
    return times


def backward_steps(times: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(later, earlier) pairs, (1,) each, from the last to the first."""
    for k in range(len(times) - 1, 0, -1):
        yield times[k : k + 1], times[k - 1 : k]


class Flow:
    """The flow of ``model`` by ``method``, ``"rk4"`` or ``"heun"``. Vectors (.., D) are in orthonormal bases of the spaces."""

    def __init__(self, model: ScoreModel, descriptor: Descriptor, method: str = "rk4"):
        if method not in _TABLEAUX:
            raise IncompatibleError(f"expected method in {sorted(_TABLEAUX)}, got {method!r}.")
        self.model, self.descriptor, self.process = model, descriptor, model.process
        self.tableau, self.dim = _TABLEAUX[method], model.process.dim
        self._bases = {name: part.space.basis().flatten(1) for name, part in self.process.items()}

    def step(self, state: State, t: Tensor, s: Tensor) -> State:
        """One step from time t to time s, (1,) each, either way."""
        slopes: list[Tangent] = []
        for row, node in zip(self.tableau.stages, self.tableau.nodes, strict=True):
            stage, time = self._move(state, slopes, row, s - t), t + node * (s - t)
            slope = self.process.velocity(stage, time, self.model(stage, time, self.descriptor))
            slopes.append(self._rates(slope, slopes, row, s - t))
        return self._move(state, slopes, self.tableau.weights, s - t)

    @torch.no_grad()
    def inverse(self, state: State, t: Tensor, s: Tensor, rounds: int = 50) -> tuple[State, Tensor]:
        """What :meth:`step` takes from t to ``state`` at s, and the gap (B, D) that is left.

        Fixed-point iteration from the step the other way, which coarse steps through narrow laws would not let converge, with Anderson's
        acceleration (doi:10.1145/321296.321305). Each sample keeps its best; one that has not gained in a while is done.
        """
        start = self.step(state, s, t)
        gap = self.gap(self.step(start, t, s), state)
        shift, stale = torch.zeros_like(gap), torch.zeros(len(gap), dtype=torch.long, device=gap.device)
        best, least, shifts, gaps = shift, gap, [shift], [gap]
        for _ in range(rounds):
            if bool(((stale > _PATIENCE) | (least.abs().amax(1) < _ROUNDING)).all()):
                break
            shift = _accelerated(shifts, gaps)
            gap = self.gap(self.step(self.shift(start, shift), t, s), state)
            better = gap.abs().amax(1) < 0.9 * least.abs().amax(1)
            best, least = (torch.where(better[:, None], new, old) for new, old in ((shift, best), (gap, least)))
            stale = torch.where(better, 0, stale + 1)
            # Where the step is too bent to be looked through, back to the best.
            lost = ~(gap.abs().amax(1) < 10 * least.abs().amax(1))[:, None]
            shifts = [*shifts, torch.where(lost, best, shift)][-_MEMORY:]
            gaps = [*gaps, torch.where(lost, least, gap)][-_MEMORY:]
        return self.shift(start, best), least

    def step_jacobian(self, state: State, t: Tensor, s: Tensor) -> tuple[State, Tensor]:
        """:meth:`step` and its Jacobian (B, D, D). Raises UnsupportedError on spaces that are not flat."""
        bent = [name for name, part in self.process.items() if not part.space.flat]
        if bent:
            raise UnsupportedError(f'tangents of {bent} do not add up, and the Jacobian of a step is not covered there: use kind="trace".')
        one, h = torch.eye(self.dim, dtype=torch.float64), s - t
        slopes: list[Tangent] = []
        jacobians: list[Tensor] = []
        for row, node in zip(self.tableau.stages, self.tableau.nodes, strict=True):
            stage, inner = self._move(state, slopes, row, h), _weighted(row, jacobians)
            slope, pull = self.velocity(stage, t + node * h)
            batch = len(next(iter(slope.values())))
            local = torch.cat([pull(rows.expand(-1, batch, -1)) for rows in one[:, None].split(max(1, _ROWS // batch))])
            slopes.append(slope)
            jacobians.append(local.transpose(0, 1) @ (one + h * inner))
        weights = self.tableau.weights
        return self._move(state, slopes, weights, h), one + h * _weighted(weights, jacobians)

    def step_growth(self, state: State, t: Tensor, s: Tensor, probes: Tensor) -> tuple[State, Tensor]:
        """:meth:`step` and, along it, the integral (P, B) of probe . J probe, J the velocity's Jacobian; ``probes`` (P, B, D)."""
        slopes: list[Tangent] = []
        growth = torch.zeros((), dtype=torch.float64)
        tableau, h = self.tableau, s - t
        for row, node, weight in zip(tableau.stages, tableau.nodes, tableau.weights, strict=True):
            slope, pull = self.velocity(self._move(state, slopes, row, h), t + node * h)
            pieces = probes.split(max(1, _ROWS // probes.shape[1]))
            growth = growth + weight * h * torch.cat([(pull(p) * p).sum(-1) for p in pieces])
            slopes.append(self._rates(slope, slopes, row, h))
        return self._move(state, slopes, tableau.weights, h), growth

    def velocity(self, state: State, t: Tensor) -> tuple[Tangent, Callable[[Tensor], Tensor]]:
        """dx/dt, and a function that takes vectors v (P, B, D) to v J, J its Jacobian."""
        with torch.enable_grad():
            still = self.process.still(state)
            moved = self.process.exp({name: x.detach() for name, x in state.items()}, still)
            slope = self.process.velocity(moved, t, self.model(moved, t, self.descriptor))
            out = self.flat(slope)

        def pull(vectors: Tensor) -> Tensor:
            found = torch.autograd.grad(
                out,
                list(still.values()),
                vectors.to(out),
                retain_graph=True,
                is_grads_batched=True,
                materialize_grads=True,
            )
            return self.flat(dict(zip(still, found, strict=True)), lead=2)

        return {name: v.detach() for name, v in slope.items()}, pull

    def flat(self, tangent: Tangent, lead: int = 1) -> Tensor:
        """(.., D) of a tangent with ``lead`` leading axes."""
        return torch.cat(
            [tangent[name].double().flatten(lead) @ basis.T for name, basis in self._bases.items()], dim=-1
        )

    def gap(self, x: State, y: State) -> Tensor:
        """log(x, y) as (B, D)."""
        return self.flat(self.process.log(x, y))

    def shift(self, x: State, vector: Tensor) -> State:
        """exp(x, vector), vector (B, D)."""
        pieces = vector.split([len(basis) for basis in self._bases.values()], dim=1)
        return {
            name: self.process[name].space.exp(x[name], (piece @ basis).reshape(x[name].shape))
            for (name, basis), piece in zip(self._bases.items(), pieces, strict=True)
        }

    def scaled(self, state: State, t: Tensor, power: int) -> State:
        """The state, float64, times alpha(t) to ``power``: 1 takes clean states to time t, -1 takes them back."""
        return {name: state[name].detach().double() * part.levels(t)[0] ** power for name, part in self.process.items()}

    def _move(self, state: State, slopes: list[Tangent], weights: tuple[float, ...], h: Tensor) -> State:
        if not weights:
            return state
        return self.process.exp(state, self._shift(slopes, weights, h))

    def _shift(self, slopes: list[Tangent], weights: tuple[float, ...], h: Tensor) -> Tangent:
        return {name: h * _weighted(weights, [v[name] for v in slopes]) for name in self.process}

    def _rates(self, slope: Tangent, slopes: list[Tangent], weights: tuple[float, ...], h: Tensor) -> Tangent:
        """The velocity at a stage in the tangents of the step's start (Munthe-Kaas, doi:10.1016/S0168-9274(98)00030-0)."""
        if not weights:
            return slope
        shift = self._shift(slopes, weights, h)
        return {name: part.space.rate(shift[name], slope[name]) for name, part in self.process.items()}


def _accelerated(points: list[Tensor], gaps: list[Tensor]) -> Tensor:
    """(B, D) where the gap would vanish, were it linear in the ``points`` seen; at first the latest plus its gap."""
    if len(points) == 1:
        return points[0] + gaps[0]
    moved, changed = (torch.stack([b - a for a, b in zip(x[:-1], x[1:], strict=True)], dim=2) for x in (points, gaps))
    size = changed.norm(dim=1, keepdim=True).clamp_min(1e-300)
    share = torch.linalg.pinv((changed / size).nan_to_num(0.0, 0.0, 0.0), rtol=1e-10) @ gaps[-1][:, :, None]
    return points[-1] + gaps[-1] - ((moved + changed) / size @ share)[..., 0]


def _weighted(weights: tuple[float, ...], values: list[Tensor]) -> Tensor:
    terms = [w * v for w, v in zip(weights, values, strict=True) if w]
    return torch.stack(terms).sum(0) if terms else torch.zeros((), dtype=torch.float64)
