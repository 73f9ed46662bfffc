"""Whole structures proposed by a diffusion model, each with the exact log-density of how it was made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..diffusion.kernels import JointKernel
from ..errors import IncompatibleError
from ..random import Streams
from ..sampling.flow import checked_grid
from ..sampling.guidance import Guided
from ..score import Moments, NoiseScore, score_of
from ..types import Geometry, Samples, State

if TYPE_CHECKING:
    from ..dig import DiG

__all__ = ["PathProposal", "Proposal"]

_ROWS = 512


class Proposal(Protocol):
    """Independent proposals for a Monte Carlo chain.

    ``draw`` returns Samples with ``log_q``; ``log_q`` estimates the same quantity for given structures. If ``exact``, a
    chain that accepts with min(1, exp(-u' - log_q' + u + log_q)) samples exp(-u) whatever the model's quality. ``gauge``, where
    a proposal has it, names what it forgets: without "translation" its structures stand where they belong; centred otherwise.
    """

    exact: bool

    def draw(self, n: int, rng: Streams) -> Samples: ...
    def log_q(self, geometry: Geometry, rng: Streams) -> Tensor: ...


class PathProposal:
    """A proposal is a whole reverse path; its log_q is log p_theta(path) - log q(path given its end).

    exp(-u - log_q) then has the partition function as its mean for any network and any grid, and Metropolis on paths leaves
    exp(-u) exact: ``log_q`` of a current structure redraws its path by forward noising, a Gibbs step on the path, so other
    moves may run in between. No divergence, no inverse map. Annealed importance sampling on paths: Neal,
    arXiv:physics/9803008; for diffusion models: Zhang et al., arXiv:2505.21005.

    With ``paths`` > 1 each structure is also seen over ``paths`` - 1 forward paths of its own and q is the mean of the
    estimates, which narrows the weights as a multiple of the cost. Still exact: the chain lives on the structure with
    all its paths, of which one, no matter which, was the proposal's (pseudo-marginal; Andrieu and Roberts,
    doi:10.1214/07-AOS574).

    Proposals of a guided model carry, besides log_q of the guided law, ``log_weight`` against the unguided one: the log of
    p_unguided(path) / p_guided(path) times the likelihood of the condition at its end. Their mean weight is the probability of the
    condition, and averages under them are those of the unguided model's samples times the likelihood, however wrong the guidance.

    Parameters
    ----------
    dig: model, process, coordinates and descriptor.
    steps: number of reverse kernels, or ``grid``, (K + 1,) increasing times from 0 to 1.
    paths: estimates of q a structure; the card's if not given.
    """

    exact = True

    def __init__(self, dig: DiG, steps: int | None = None, grid: Tensor | None = None, paths: int | None = None):
        self.dig = dig
        self.grid = checked_grid(dig.grid(steps) if grid is None else grid)
        self._model = dig.model.along(self.grid) if type(dig.model) is NoiseScore else dig.model
        self._process = self._model.process
        self.paths = dig.card.paths if paths is None else int(paths)
        if self.paths < 1:
            raise IncompatibleError(f"paths must be at least 1, got {self.paths}.")

    def __reduce__(self):
        """Other processes are sent plain numbers beside the model."""
        return _path_proposal, (self.dig, self.grid.tolist(), self.paths)

    @property
    def gauge(self) -> frozenset[str]:
        """What the coordinates forget of a structure."""
        return self.dig.coordinates.gauge

    @torch.no_grad()
    def draw(self, n: int, rng: Streams) -> Samples:
        """``n`` structures, one a stream of ``rng``."""
        if len(rng) != n:
            raise IncompatibleError(f"expected one stream for each of {n} samples, got {len(rng)}.")
        process = self._process
        rng.reserve(len(self.grid) * sum(math.prod(part.space.shape) for part in process.values()))
        prior = process.prior(process.empty(n, torch.float64))
        state = prior.sample(rng)
        log_path, log_ratio = prior.log_prob(state), torch.zeros(n, dtype=torch.float64)
        for k in range(len(self.grid) - 1, 0, -1):
            plain, kernel = self._pair(state, self.grid[k : k + 1], self.grid[k - 1 : k])
            earlier = kernel.sample(rng)
            log_step = kernel.log_prob(earlier)
            log_path += log_step - self._forward(earlier, k).log_prob(state)
            if plain is not None:
                log_ratio += plain.log_prob(earlier) - log_step
            state = earlier
        samples = self.dig.to_samples(state, self._mean([log_path], state, rng), "path", rng)
        if samples.log_likelihood is None:
            return samples
        log_weight = torch.where(samples.valid, log_ratio + samples.log_likelihood, -math.inf)
        return samples._replace(log_weight=log_weight)

    @torch.no_grad()
    def log_q(self, geometry: Geometry, rng: Streams) -> Tensor:
        """(B,) float64 log_q of given structures over freshly drawn paths."""
        state, log_det = self.dig.coordinates.encode(geometry, self.dig.descriptor)
        return log_det + self._mean([], state, rng)

    def _mean(self, estimates: list[Tensor], state: State, rng: Streams) -> Tensor:
        """log of the mean of exp(estimates), filled up to ``paths`` of them with forward paths from ``state``."""
        while len(estimates) < self.paths:
            estimates = [*estimates, self._forward_path(state, rng)]
        return torch.logsumexp(torch.stack(estimates), dim=0) - math.log(self.paths)

    def _forward_path(self, state: State, rng: Streams) -> Tensor:
        """(B,) log p_theta(path) - log q(path given ``state``) over one path drawn by forward noising."""
        visited, log_path = [state], torch.zeros(len(rng), dtype=torch.float64)
        for k in range(1, len(self.grid)):
            kernel = self._forward(visited[-1], k)
            visited.append(kernel.sample(rng))
            log_path -= kernel.log_prob(visited[-1])
        # The path does not depend on the network, which therefore sees many of its steps at once where samples are few.
        together = max(1, _ROWS // len(rng))
        for first in range(1, len(self.grid), together):
            steps = range(first, min(first + together, len(self.grid)))
            log_path += self._log_reverse([visited[k - 1] for k in steps], [visited[k] for k in steps], steps)
        return log_path + self.dig.process.prior(visited[-1]).log_prob(visited[-1])

    def _log_reverse(self, earlier: list[State], later: list[State], steps: range) -> Tensor:
        """(B,) sum over ``steps`` of log p_theta(earlier given later)."""
        batch = len(next(iter(later[0].values())))
        before, after = ({name: torch.cat([state[name] for state in states]) for name in states[0]} for states in (earlier, later))
        # One time for all rows where it is one: the network embeds it once.
        rows = batch if len(steps) > 1 else 1
        s, t = (self.grid[list(k)].repeat_interleave(rows) for k in ([k - 1 for k in steps], steps))
        return self._reverse(after, t, s).log_prob(before).reshape(len(steps), batch).sum(0)

    def _forward(self, state: State, k: int) -> JointKernel:
        """q(x_k given x_{k-1})."""
        return self._process.forward(state, self.grid[k - 1 : k], self.grid[k : k + 1])

    def _reverse(self, state: State, t: Tensor, s: Tensor) -> JointKernel:
        """p_theta(x_s given x_t), times (B,) or (1,)."""
        return self._kernel(state, t, s, self._model.moments(state, t, self.dig.descriptor))

    def _pair(self, state: State, t: Tensor, s: Tensor) -> tuple[JointKernel | None, JointKernel]:
        """Of a guided model the unguided kernel, None of any other, and p_theta(x_s given x_t)."""
        if not isinstance(self._model, Guided):
            return None, self._reverse(state, t, s)
        plain, guided = self._model.both(state, t, self.dig.descriptor)
        return self._kernel(state, t, s, plain), self._kernel(state, t, s, guided)

    def _kernel(self, state: State, t: Tensor, s: Tensor, moments: Moments) -> JointKernel:
        return self._process.reverse(state, t, s, score_of(self._process, moments.noise, t), moments.spread)


def _path_proposal(dig: DiG, grid: list[float], paths: int) -> PathProposal:
    return PathProposal(dig, grid=torch.tensor(grid, dtype=torch.float64), paths=paths)
