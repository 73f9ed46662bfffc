"""Independence Metropolis and multiple-try steps on weighted proposals, and a chain that mixes them with anybody's own moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from enum import IntEnum
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..energy import Energy
from ..errors import IncompatibleError, StateError
from ..parallel import as_here, halving, in_order
from ..random import Streams, as_seed
from ..types import Geometry
from .proposals import Proposal

__all__ = ["SCHEMES", "Candidates", "MonteCarlo", "Pool", "Reason", "Records", "Statistics", "independence_metropolis", "isir", "weighed"]

_FREE = frozenset({"translation"})  # what a proposal forgets that does not say
_REFRESH = 2**62  # streams from here on redraw paths of current states; proposals use the indices below


class Reason(IntEnum):
    """Why a proposal could not be accepted; ``NONE`` is an ordinary Metropolis decision."""

    NONE = 0
    INVALID = 1  # the state has no structure
    ENERGY = 2  # the energy failed or is infinite
    DENSITY = 3  # log_q is not finite


class Candidates(NamedTuple):
    """n weighed proposals: positions (n, N, 3) Angstrom; ``u``, ``log_q`` (n,) float64; ``reason`` (n,) of :class:`Reason`.

    ``cell`` (n, 3, 3) Angstrom, rows are lattice vectors, zero for proposals that come without.
    """

    positions: np.ndarray
    u: np.ndarray
    log_q: np.ndarray
    reason: np.ndarray
    cell: np.ndarray = np.zeros((0, 3, 3))

    @property
    def log_weight(self) -> np.ndarray:
        """(n,) -u - log_q, -inf where the proposal cannot be accepted: for a reason, or because a number is not finite."""
        possible = (self.reason == Reason.NONE) & np.isfinite(self.u) & np.isfinite(self.log_q)
        return np.where(possible, -np.where(possible, self.u, 0.0) - np.where(possible, self.log_q, 0.0), -np.inf)


class Records(NamedTuple):
    """One row a proposal: ``u``, ``log_q``, ``log_alpha`` (log acceptance probability), ``accepted``, ``reason``."""

    u: np.ndarray
    log_q: np.ndarray
    log_alpha: np.ndarray
    accepted: np.ndarray
    reason: np.ndarray


_NONE_FAILED = {r.name.lower(): 0 for r in Reason if r}


class Statistics(NamedTuple):
    """Counts since the chain began. ``failed`` maps a reason to how many proposals could not be accepted for it."""

    proposed: int = 0
    accepted: int = 0
    longest_rejection_run: int = 0
    failed: dict[str, int] = _NONE_FAILED
    current_rejection_run: int = 0

    @property
    def acceptance(self) -> float:
        return self.accepted / max(self.proposed, 1)

    def after(self, records: Records) -> Statistics:
        """These counts with a block's."""
        run, longest = self.current_rejection_run, self.longest_rejection_run
        for accepted in records.accepted.tolist():
            run = 0 if accepted else run + 1
            longest = max(longest, run)
        failed = {r.name.lower(): self.failed.get(r.name.lower(), 0) + int((records.reason == r).sum()) for r in Reason if r}
        return Statistics(self.proposed + len(records.accepted), self.accepted + int(records.accepted.sum()), longest, failed, run)


def independence_metropolis(log_weight: float, candidates: Candidates, rng: np.random.Generator) -> tuple[np.ndarray, Records]:
    """Test n proposals one after the other, starting from a state of log weight ``log_weight``.

    Accepts with min(1, w'/w), w = exp(-u - log_q) (Hastings, doi:10.1093/biomet/57.1.97). Returns ``path`` (n,): which
    candidate is current after each test, -1 the starting state; and the records.
    """
    proposed = candidates.log_weight
    if math.isnan(log_weight) or log_weight == -math.inf:
        raise StateError(f"the current state has log weight {log_weight}: its energy failed or its density is infinite.")
    threshold = np.log1p(-rng.random(len(proposed)))
    path, log_alpha = np.empty(len(proposed), dtype=np.int64), np.empty(len(proposed))
    here = -1
    for i, weight in enumerate(proposed):
        log_alpha[i] = min(0.0, weight - log_weight)
        if threshold[i] < log_alpha[i]:
            here, log_weight = i, weight
        path[i] = here
    accepted = path == np.arange(len(path))
    return path, Records(candidates.u, candidates.log_q, log_alpha, accepted, candidates.reason)


def isir(log_weight: float, candidates: Candidates, rng: np.random.Generator) -> tuple[np.ndarray, Records]:
    """One multiple-try step: the next state is one of n proposals or the current one, with probability proportional to weight.

    Iterated sampling importance resampling (Andrieu et al., doi:10.3150/15-BEJ785); exact for every n. Returns as
    :func:`independence_metropolis`, with ``path`` (1,) and ``log_alpha`` the log selection probabilities.
    """
    if math.isnan(log_weight) or log_weight == -math.inf:
        raise StateError(f"the current state has log weight {log_weight}: its energy failed or its density is infinite.")
    weights = np.append(candidates.log_weight, log_weight)
    # An infinite weight of the current state (no path leads to it) beats every proposal's.
    log_p = weights - np.logaddexp.reduce(weights) if log_weight < math.inf else np.where(weights == math.inf, 0.0, -np.inf)
    chosen = int(np.searchsorted(np.cumsum(np.exp(log_p)), rng.random() * np.exp(log_p).sum(), side="right"))
    n = len(candidates.u)
    accepted = np.arange(n) == chosen
    path = np.array([chosen if chosen < n else -1])
    return path, Records(candidates.u, candidates.log_q, log_p[:n], accepted, candidates.reason)


SCHEMES = {"metropolis": independence_metropolis, "isir": isir}


class Pool:
    """Proposals drawn, weighed and energy-evaluated in batches ahead of the chain.

    Batch b always holds samples b * batch to (b + 1) * batch - 1 of ``seed``, so a chain that resumes at any sample sees
    the same numbers as one that ran through.
    """

    def __init__(self, proposal: Proposal, energy: Energy, *, seed: int, batch: int = 256, start: int = 0):
        if batch < 1:
            raise IncompatibleError(f"expected a batch of at least 1 proposal, got {batch}.")
        self.proposal, self.energy, self.seed, self.batch, self.next = proposal, energy, as_seed(seed), int(batch), int(start)
        self._number = -1
        self._held: Candidates | None = None

    def take(self, n: int) -> Candidates:
        """The next ``n`` candidates."""
        if n < 1:
            raise IncompatibleError(f"expected to take at least 1 proposal, got {n}.")
        parts = []
        while n > 0:
            number, offset = divmod(self.next, self.batch)
            if self._held is None or number != self._number:
                rows = range(number * self.batch, (number + 1) * self.batch)
                self._held, self._number = _candidates(self.proposal, self.energy, self.seed, rows), number
            part = Candidates(*(field[offset : offset + n] for field in self._held))
            parts.append(part)
            self.next += len(part.u)
            n -= len(part.u)
        return Candidates(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))

    def forget(self) -> None:
        """Draw the batch in hand anew when next asked: the energy is another one now."""
        self._held, self._number = None, -1


def weighed(
    proposal: Proposal, energy: Energy, n: int, *, seed: int, batch: int = 256, start: int = 0, executor: Executor | None = None
) -> Iterator[Candidates]:
    """The first ``n`` candidates of a :class:`Pool` from number ``start`` on, a batch at a time, with flat memory.

    ``executor``: processes that each draw, weigh and evaluate a batch; the numbers are those of this process, bit by bit on processors of
    one kind. The proposal's model travels as the bytes of its checkpoint, the energy as executors send objects.
    """
    if n < 1 or batch < 1:
        raise IncompatibleError(f"expected at least 1 proposal, in batches of at least 1, got n = {n} and batch = {batch}.")
    task, lows = partial(_candidates, proposal, energy, as_seed(seed)), range(start, start + n, batch)
    batches = (range(low, low + batch) for low in lows)
    made = map(task, batches) if executor is None else in_order(executor, as_here(task), batches)
    for low, found in zip(lows, made, strict=True):
        yield Candidates(*(field[: start + n - low] for field in found))


def _candidates(proposal: Proposal, energy: Energy, seed: int, rows: range) -> Candidates:
    """Samples ``rows`` of ``seed``, weighed; in halves where memory does not suffice."""
    parts = halving(partial(_together, proposal, energy, seed), rows)
    return Candidates(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


def _together(proposal: Proposal, energy: Energy, seed: int, rows: range) -> Candidates:
    samples = proposal.draw(len(rows), Streams(seed, rows))
    with torch.no_grad():
        u = reduced_energy(energy, samples.geometry)
    energies, log_q = u.numpy(), samples.known_log_q().numpy()
    reason = np.full(len(rows), Reason.NONE, dtype=np.uint8)
    reason[~np.isfinite(log_q)] = Reason.DENSITY
    reason[~np.isfinite(energies)] = Reason.ENERGY
    reason[~samples.valid.numpy()] = Reason.INVALID
    positions, cell = samples.geometry
    cells = np.zeros((len(rows), 3, 3)) if cell is None else cell.numpy()
    return Candidates(positions.numpy(), energies, log_q, reason, cells)


class MonteCarlo:
    """A Markov chain on exp(-u): blocks of independent proposals, alternating with ``local`` moves of one's own.

    Parameters
    ----------
    proposal, energy: what proposes and what is sampled; the proposal must be exact.
    start: one structure (1, N, 3) Angstrom; with its cell (1, 3, 3) where proposals have one.
    seed: of proposals, paths and decisions; ``batch`` proposals are prepared at a time.
    scheme: ``"metropolis"`` or ``"isir"``.
    local: maps (positions (N, 3) Angstrom, block number) to positions, leaving exp(-u) invariant by itself, or None.

    Attributes
    ----------
    positions, cell: the current state, (N, 3) and (3, 3) or None. cells: (M, 3, 3) of the last block's visited states, or None.
    """

    def __init__(
        self,
        proposal: Proposal,
        energy: Energy,
        start: Geometry,
        *,
        seed: int,
        batch: int = 256,
        scheme: str = "metropolis",
        local: Callable[[np.ndarray, int], np.ndarray] | None = None,
    ):
        if not getattr(proposal, "exact", False):
            raise IncompatibleError("this proposal's density is approximate: a chain with it would be biased. Use a path or map proposal.")
        if scheme not in SCHEMES:
            raise IncompatibleError(f"scheme must be one of {sorted(SCHEMES)}, got {scheme!r}.")
        self.proposal, self.energy, self.seed, self.scheme, self.local = proposal, energy, int(seed), scheme, local
        self._floating = "translation" in getattr(proposal, "gauge", _FREE)
        self.pool = Pool(proposal, energy, seed=seed, batch=batch)
        self.positions = start.positions.detach().cpu().double().reshape(-1, 3).numpy().copy()
        self.cell = None if start.cell is None else start.cell.detach().cpu().double().reshape(3, 3).numpy().copy()
        self.cells: np.ndarray | None = None
        self.blocks = 0

    def block(self, n: int) -> tuple[np.ndarray, Records]:
        """A local move, a fresh path for the current state, then ``n`` proposals. Returns (visited (M, N, 3), records).

        M is n for Metropolis (the state after every test, repeats included) and 1 for multiple-try.
        """
        if self.local is not None:
            self.positions = self.local(self.positions, self.blocks)
        log_weight = self.log_weight(self.positions, self.cell)
        candidates = self.pool.take(n)
        path, records = SCHEMES[self.scheme](log_weight, candidates, Streams.chain(self.seed, self.blocks))
        # Proposals that forget where they are come centred; the chain keeps the centroid that the current state had.
        shifted = candidates.positions + (self.positions.mean(axis=0) if self._floating else 0.0)
        moved = (path >= 0)[:, None, None]
        visited = np.where(moved, shifted[path], self.positions)
        self.positions = visited[-1].copy()
        if self.cell is not None and candidates.cell.any():
            self.cells = np.where(moved, candidates.cell[path], self.cell)
            self.cell = self.cells[-1].copy()
        self.blocks += 1
        return visited, records

    def log_weight(self, positions: np.ndarray, cell: np.ndarray | None = None) -> float:
        """-u - log_q of one structure (N, 3), in its cell (3, 3) if it has one, over a fresh path."""
        if not np.isfinite(positions).all():
            raise StateError("the current positions are not finite: the simulation has blown up. Minimise, or shorten the time step.")
        lattice = None if cell is None else torch.as_tensor(cell, dtype=torch.float64)[None]
        geometry = Geometry(torch.as_tensor(positions, dtype=torch.float64)[None], lattice)
        with torch.no_grad():
            u = reduced_energy(self.energy, geometry)
            log_q = self.proposal.log_q(geometry, Streams(self.seed, [_REFRESH + self.blocks]))
        return float(-u - log_q)

    def state_dict(self) -> dict:
        """Everything a later process needs to go on with the same numbers."""
        cell = {} if self.cell is None else {"cell": self.cell.copy()}
        return {"positions": self.positions.copy(), **cell, "blocks": self.blocks, "next": self.pool.next, "seed": self.seed}

    def load_state_dict(self, state: dict) -> None:
        """Go on from :meth:`state_dict`; the seed must be the one the chain was made with."""
        if int(state["seed"]) != self.seed:
            raise IncompatibleError(f"this chain was made with seed {self.seed}, the saved one with {int(state['seed'])}: use that seed.")
        self.positions, self.blocks, self.pool.next = np.array(state["positions"]), int(state["blocks"]), int(state["next"])
        if "cell" in state:
            self.cell = np.array(state["cell"])


def reduced_energy(energy: Energy, geometry: Geometry) -> Tensor:
    """(B,) float64 energies, NaN turned to +inf: a failed energy is never a low one."""
    u = energy(geometry).double()
    return torch.where(torch.isnan(u), torch.full_like(u, math.inf), u)
