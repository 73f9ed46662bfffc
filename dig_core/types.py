"""Values that travel between the parts: states, tangents, geometries, samples, log-densities."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .errors import IncompatibleError

__all__ = ["Geometry", "LogProb", "Samples", "State", "Tangent"]

State = dict[str, Tensor]
"""Component name -> (B, ...), a point of that component's space."""

Tangent = dict[str, Tensor]
"""Same keys and shapes as a State: scores, noise, velocities."""


class Geometry(NamedTuple):
    """Structures as engines see them: ``positions`` (B, N, 3) Angstrom; ``cell`` (B, 3, 3) Angstrom or None, rows are lattice vectors."""

    positions: Tensor
    cell: Tensor | None = None


class LogProb(NamedTuple):
    """Log-densities and how they were made.

    ``value`` (B,) float64, density over Cartesian space (Lebesgue measure on the zero-centroid subspace, Angstrom);
    ``stderr`` (B,) standard error of ``value``, zero for deterministic estimators;
    ``kind`` one of ``"trace"``, ``"map"``, ``"hutchinson"``, ``"path"``.
    """

    value: Tensor
    stderr: Tensor
    kind: str


class Samples(NamedTuple):
    """Structures drawn from a model.

    ``geometry`` B structures; ``state`` the same in the model's coordinates; ``log_q`` (B,) float64, the log-density (or
    log path weight, see ``kind``) in the measure of :class:`LogProb`, None if it was not asked for; ``valid`` (B,) bool,
    False where the state has no structure (a negative bond length, say): such samples have zero weight.

    Of guided samples besides: ``log_likelihood`` (B,) float64, that of the condition given the structure, -inf where a property could not
    be told; ``properties``, name -> (B,) what was read off the structure, NaN there; ``log_weight`` (B,) float64, which makes samples of
    guided paths exact for the unguided law times the likelihood. For an energy the weight is -u + log_likelihood - log_q.
    """

    geometry: Geometry
    state: State
    log_q: Tensor | None
    valid: Tensor
    kind: str | None = None
    log_likelihood: Tensor | None = None
    properties: dict[str, Tensor] | None = None
    log_weight: Tensor | None = None

    def known_log_q(self) -> Tensor:
        """``log_q`` (B,); an error if these samples were drawn without it."""
        if self.log_q is None:
            raise IncompatibleError('these samples carry no log_q: draw them with method="path" or from a proposal.')
        return self.log_q
