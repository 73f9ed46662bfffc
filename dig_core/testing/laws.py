"""Laws with known noised densities on closed spaces: lattices and rotations."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.spaces import Space
from ..energy import Mixture
from ..errors import IncompatibleError

__all__ = ["HeatMixture"]


class HeatMixture(Mixture):
    """Brownian motion from several points of a closed space, density relative to the uniform law: ``means`` (M, d), ``variances`` (M,).

    Points are flat, (B, d) for those of the space's shape.

    Noised by the process it stays one, with the variance of the noise added. Raises IncompatibleError for open spaces.
    """

    def __init__(self, space: Space, weights, means, variances):
        super().__init__(weights, means)
        self.space, self.variances = space, torch.as_tensor(variances, dtype=torch.float64)
        if not space.periodic or self.variances.shape != self.weights.shape or space.dim != self.dim:
            raise IncompatibleError(
                f"expected a closed space, means (M, {space.dim}) and variances (M,), got a {type(space).__name__}, "
                f"{tuple(self.means.shape)} and {tuple(self.variances.shape)}."
            )

    def _parts(self, x, alpha, sigma):
        gap, variance = self._gaps(x, sigma)
        shape = x.shape[0], len(self.means)
        return self.space.log_heat(gap, variance).reshape(shape), self.space.heat_score(gap, variance).reshape(*shape, -1)

    def _bends(self, x, alpha, sigma):
        """The derivative of each entry of the score along its own axis, by autograd."""
        x = x.detach()
        bends = []
        with torch.enable_grad():
            still = torch.zeros(len(x), len(self.means), self.dim, dtype=torch.float64, requires_grad=True)
            gap, variance = self._gaps(x, sigma, still)
            score = self.space.heat_score(gap, variance)
            for i, entry in enumerate(score.flatten(1).unbind(1)):
                bends.append(torch.autograd.grad(entry.sum(), still, retain_graph=True)[0][..., i])
        return torch.stack(bends, dim=-1)

    def _gaps(self, x: Tensor, sigma, still: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tangents from every mean to ``x``, moved by ``still``, and the variances there, (B M, *shape) both."""
        shape = len(x), len(self.means), self.dim
        ends = self._points(x[:, None].expand(shape))
        ends = ends if still is None else self.space.exp(ends, self._points(still))
        level = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1, 1)
        variance = (self.variances[:, None] + level**2).expand(shape)
        return self.space.log(self._points(self.means.expand(shape)), ends), self._points(variance)

    def _points(self, flat: Tensor) -> Tensor:
        return flat.reshape(-1, *self.space.shape)

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """(n, d) independent draws."""
        which = self._pick(n, rng)
        raw, width = torch.randn(n, self.dim, generator=rng, dtype=torch.float64), self.variances[which, None].sqrt().expand(n, self.dim)
        step = self.space.heat_step(self._points(raw), self._points(width))
        return self.space.exp(self._points(self.means[which]), step).flatten(1)
