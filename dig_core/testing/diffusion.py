"""Checks of spaces, schedules, processes and score models."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..diffusion.kernels import Kernel, Normal
from ..diffusion.processes import Diffusion, Joint
from ..diffusion.schedules import Schedule
from ..diffusion.spaces import Space
from ..random import Streams
from ..score import ScoreModel
from ..types import State

__all__ = [
    "check_fokker_planck", "check_process", "check_schedule", "check_score_model", "check_space", "close", "random_state", "require",
]  # fmt: skip

_POINTS = 128
"""Data that stand for a law: as many as let it be told from the prior where a point is off by three nats."""


def require(condition: bool | Tensor, message: str) -> None:
    """Raise AssertionError with ``message`` unless ``condition`` (the whole of it) is true; unlike assert, under -O too."""
    if not bool(torch.as_tensor(condition).all()):
        raise AssertionError(message)


def close(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    """Raise AssertionError unless |found - wanted| <= tolerance * (1 + |wanted|) everywhere; NaN never is."""
    found, wanted = torch.broadcast_tensors(found.detach().double(), wanted.detach().double())
    excess = (found - wanted).abs() / (1 + wanted.abs())
    # Equal infinities are equal.
    excess = torch.where(found == wanted, torch.zeros_like(excess), excess)
    if not bool((excess <= tolerance).all()):
        worst = int(torch.nan_to_num(excess, nan=torch.inf).argmax())
        raise AssertionError(
            f"{what}: found {float(found.flatten()[worst]):.10g}, wanted {float(wanted.flatten()[worst]):.10g} "
            f"(relative tolerance {tolerance:g}, {int((~(excess <= tolerance)).sum())} of {excess.numel()} values off)."
        )


def random_state(process: Joint, n: int, seed: int = 0, scale: float = 1.0) -> State:
    """``n`` float64 points, normal with standard deviation ``scale`` along each tangent, wrapped on a torus."""
    rng = torch.Generator().manual_seed(seed)
    return {name: _points(part.space, n, rng, scale) for name, part in process.items()}


def check_space(space: Space, *, n: int = 16, seed: int = 0) -> None:
    """project is idempotent; exp stays on the space and log is its inverse; the basis is orthonormal, tangent and complete."""
    rng = torch.Generator().manual_seed(seed)
    x, y = (_points(space, n, rng, 2.0) for _ in range(2))
    v = torch.randn(x.shape, generator=rng, dtype=torch.float64)
    tangent = space.project(v)
    close(space.project(tangent), tangent, 1e-12, "project(project(v))")
    basis = space.basis()
    require(basis.shape == (space.dim, *space.shape), f"basis has shape {tuple(basis.shape)}, wanted (dim, *shape).")
    close(basis.flatten(1) @ basis.flatten(1).T, torch.eye(space.dim), 1e-12, "inner products of basis vectors")
    close(space.project(basis), basis, 1e-12, "project(basis)")
    along = (
        torch.einsum("b...,d...->bd", tangent, basis) if not space.shape else tangent.flatten(1) @ basis.flatten(1).T
    )
    close(along @ basis.flatten(1), tangent.flatten(1), 1e-12, "a tangent expanded in the basis")
    close(space.exp(x, space.log(x, y)), y, 1e-12, "exp(x, log(x, y))")
    small = 0.1 * tangent
    close(space.log(x, space.exp(x, small)), small, 1e-12, "log(x, exp(x, v))")
    walk = x
    for _ in range(1000):
        walk = space.exp(walk, 0.1 * v)
    close(space.exp(walk, torch.zeros_like(walk)), walk, 1e-9, "exp(x, 0) after a thousand steps")
    close(space.exp(x, space.log(x, walk)), walk, 1e-9, "exp(x, log(x, y)) after a thousand steps")


def check_schedule(schedule: Schedule, *, n: int = 50) -> None:
    """Clean data at t = 0; alpha falls, sigma rises; drift and diffusion are their rates; ``config`` rebuilds it."""
    zero = torch.zeros(1, dtype=torch.float64)
    close(schedule.alpha(zero), torch.ones(1), 1e-12, "alpha(0)")
    close(schedule.sigma(zero), torch.zeros(1), 1e-12, "sigma(0)")
    t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    require(alpha.diff() <= 0, "alpha must not rise with t.")
    require(sigma.diff() > 0, "sigma must rise with t.")
    require(
        (alpha > 0) & alpha.isfinite() & sigma.isfinite(), "alpha must be positive, alpha and sigma finite on [0, 1]."
    )
    t, h = t[1:-1], 1e-6
    drift = (schedule.alpha(t + h).log() - schedule.alpha(t - h).log()) / (2 * h)
    close(schedule.drift(t), drift, 1e-6, "drift against d log alpha / dt")
    growth = (schedule.sigma(t + h) ** 2 - schedule.sigma(t - h) ** 2) / (2 * h)
    wanted = growth - 2 * drift * schedule.sigma(t) ** 2
    close(schedule.diffusion(t), wanted, 1e-6, "diffusion against d sigma^2 / dt - 2 drift sigma^2")
    again = type(schedule)(**schedule.config)
    close(again.alpha(t), schedule.alpha(t), 0.0, "alpha rebuilt from config")
    close(again.sigma(t), schedule.sigma(t), 0.0, "sigma rebuilt from config")


def check_process(process: Diffusion, *, n: int = 8, seed: int = 0, data: Tensor | None = None, limit: float = 0.5) -> None:
    """forward(0, t) is forward(0, s) then forward(s, t); its levels are alpha and sigma; the prior is where it ends.

    At t = 1 a point is forgotten to 0.1 nat a dimension, and the law that ``data`` are noised to is within ``limit`` nats of the prior
    (Kullback-Leibler, in total): the samples of an exact score are off by as much. ``data`` (M, *shape) are clean points, a few hundred
    of a model's training frames for example; normal ones of unit scale if None.
    """
    x = random_state(Joint(x=process), n, seed)["x"]
    zero = torch.zeros(1, dtype=torch.float64)
    for times in ((0.01, 0.3), (0.3, 0.7), (0.5, 1.0)):
        s, t = torch.tensor(times, dtype=torch.float64).split(1)
        first, whole = _normal(process.forward(x, zero, s)), _normal(process.forward(x, zero, t))
        second = _normal(process.forward(first.mean, s, t))
        ratio = process.levels(t)[0] / process.levels(s)[0]
        close(
            process.space.log(whole.mean, second.mean),
            torch.zeros_like(x),
            1e-9,
            f"mean of two steps to t = {float(t)}",
        )
        close(
            ratio**2 * first.variance + second.variance,
            whole.variance,
            1e-9,
            f"variance of two steps to t = {float(t)}",
        )
        alpha, sigma = process.levels(t)
        close(whole.variance, sigma**2, 1e-9, "variance of forward(x, 0, t)")
        close(
            process.space.log(process.space.exp(torch.zeros_like(x), alpha * x), whole.mean),
            torch.zeros_like(x),
            1e-9,
            "its mean",
        )
    _check_end(process, random_state(Joint(x=process), _POINTS, seed)["x"] if data is None else data.double(), seed, limit)


def _check_end(process: Diffusion, x: Tensor, seed: int, limit: float) -> None:
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    later = process.forward(x, zero, one)
    y = later.sample(Streams(seed, range(len(x))))
    prior = process.prior(y).log_prob(y)
    point = float((later.log_prob(y) - prior).mean())
    require(point < 0.1 * process.space.dim, f"noising a point ends {point:.2f} nats from the prior: raise the noise at t = 1.")
    if point > limit:  # otherwise the law of all points is nearer still
        each = torch.stack([later.log_prob(place.expand_as(x)) for place in y])
        lost = float((each.logsumexp(1) - math.log(len(x)) - prior).mean())
        require(lost < limit, f"noised data end {lost:.2f} nats from the prior in total, expected {limit:g}: raise the noise at t = 1.")


def check_fokker_planck(
    model: ScoreModel, state: State, t: Tensor, descriptor: Any = None, *, tolerance: float = 1e-7
) -> None:
    """An exact score obeys d_t s = grad[-drift x.s + (diffusion / 2)(div s + s.s)] (article, eq. 4), here by autograd, times sigma^2.

    ``state`` and ``t`` (B,) are points to look at; few dimensions, for the cost is their number squared.
    """
    t = t.detach().double().clone().requires_grad_()
    given = {name: x.detach().double() for name, x in state.items()}
    # Twice along the spaces: the divergence is taken at points that move, and tangents of rotations do not add up.
    first, second = model.process.still(given), model.process.still(given)
    score = model(model.process.exp(model.process.exp(given, first), second), t, descriptor)
    total = torch.zeros((), dtype=torch.float64)
    for name, part in model.process.items():
        basis, flat = part.space.basis().flatten(1), score[name].flatten(1)
        divergence = sum(
            (torch.autograd.grad((flat @ e).sum(), second[name], create_graph=True)[0].flatten(1) @ e) for e in basis
        )
        inside = 0.5 * part.schedule.diffusion(t) * (divergence + (flat**2).sum(1))
        total = total + (inside - part.schedule.drift(t) * (flat * model.process.exp(given, first)[name].flatten(1)).sum(1)).sum()
    wanted = torch.autograd.grad(total, list(first.values()), retain_graph=True)
    for (name, part), slope in zip(model.process.items(), wanted, strict=True):
        dummy = torch.zeros_like(score[name], requires_grad=True)
        # d score / dt for every entry at once: the derivative, by the vector, of the vector-Jacobian product.
        pulled = torch.autograd.grad(score[name], t, dummy, create_graph=True)[0]
        rate = torch.autograd.grad(pulled.sum(), dummy, retain_graph=True)[0]
        sigma = part.levels(t)[1]
        close(sigma**2 * rate, sigma**2 * part.space.project(slope), tolerance, f"Fokker-Planck equation of {name}")


def check_score_model(model: ScoreModel, state: State, descriptor: Any = None, *, tolerance: float = 1e-5) -> None:
    """Scores are finite, tangent and independent of the batch; any float time works, one for all or one each; inputs stay as they
    are; ``moments`` say the same as the score, with a variance above zero.
    """
    n, process = len(next(iter(state.values()))), model.process
    require(n >= 3, "pass at least 3 states.")
    require(set(state) == set(process), f"the states have components {sorted(state)}, the process {sorted(process)}.")
    for time in (0.0101, 0.37, 1.0):
        t = torch.tensor([time], dtype=torch.float64)
        before = {name: x.clone() for name, x in state.items()}
        with torch.no_grad():
            score, moments = model(state, t, descriptor), model.moments(state, t, descriptor)
            each = model(state, t.expand(n), descriptor)
            part = model({name: x[1:2] for name, x in state.items()}, t, descriptor)
        require(t == time, "the model wrote to t.")
        for name, x in state.items():
            require(x == before[name], f"the model wrote to its input {name}.")
            require(
                score[name].shape == x.shape,
                f"the score of {name} has shape {tuple(score[name].shape)}, wanted {tuple(x.shape)}.",
            )
            require(score[name].isfinite(), f"the score of {name} is not finite at t = {time}.")
            sigma, space = process[name].levels(t)[1], process[name].space
            noise = -sigma * score[name]
            close(
                moments.noise[name], noise, tolerance, f"moments.noise of {name} against -sigma * score at t = {time}"
            )
            close(
                -sigma * each[name],
                noise,
                tolerance,
                f"{name} with one time for each sample against one for all, t = {time}",
            )
            close(
                -sigma * part[name], noise[1:2], tolerance, f"{name} of a sample alone against in its batch, t = {time}"
            )
            close(space.project(noise), noise, tolerance, f"tangent part of the noise of {name}")
            spread = moments.spread[name].expand_as(x)
            require(
                (spread >= 0) & spread.isfinite(), f"moments.spread of {name} must be finite and >= 0 at t = {time}."
            )


def _normal(kernel: Kernel) -> Normal:
    if not isinstance(kernel, Normal):
        raise AssertionError(f"forward must return a Normal kernel, got {type(kernel).__name__}.")
    return kernel


def _points(space: Space, n: int, rng: torch.Generator, scale: float) -> Tensor:
    raw = torch.randn(n, *space.shape, generator=rng, dtype=torch.float64)
    return space.exp(torch.zeros_like(raw), scale * space.project(raw))
