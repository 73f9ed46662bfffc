"""What ensembles with raw weights have in common, conformers and poses alike."""

from __future__ import annotations

import numpy as np

from dig_core.montecarlo import analysis
from dig_core.montecarlo.analysis import Estimate

from .energy import reduced_unit

__all__ = ["RESAMPLES", "Weighted"]

RESAMPLES = 200
"""Bootstrap samples that an error is read from."""


class Weighted:
    """Structures of which ``log_weight`` (n,) says what each weighs.

    Errors take ``block`` of them together; or they are of so many ``chains``, as :func:`dig_core.montecarlo.analysis.bootstrap` says.
    """

    log_weight: np.ndarray
    temperature: float
    seed: int
    block: int = 1
    chains: int = 1

    def __len__(self) -> int:
        return len(self.log_weight)

    @property
    def weights(self) -> np.ndarray:
        """(n,) normalised to one."""
        return analysis.normalised_weights(self.log_weight)

    def effective_sample_size(self) -> float:
        """Raw Kish size, in structures; what a chain repeats counts as often as it stands there."""
        return analysis.effective_sample_size(self.log_weight) * len(self)

    def free_energy_difference(self, a: np.ndarray, b: np.ndarray) -> Estimate:
        """F(b) - F(a) in kcal/mol with its standard error; ``a``, ``b`` (n,) bool say which structures are in a state.

        +inf or -inf, error nan, where only one was visited; StateError where neither was.
        """
        how = {"block": self.block, "chains": self.chains}
        found = analysis.free_energy_difference(a, b, self.weights, **how, n_bootstrap=RESAMPLES, rng=self._rng())
        kt = reduced_unit(self.temperature)
        return Estimate(found.value * kt, found.stderr * kt)

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)
