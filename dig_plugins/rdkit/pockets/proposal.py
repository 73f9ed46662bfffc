"""Poses proposed by a model: every form of the ligand's rings with coordinates of its own, one exact density over all of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from rdkit import Chem
from torch import Tensor

from dig_core.coordinates.bound import Bound
from dig_core.dig import DiG
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.montecarlo.proposals import PathProposal
from dig_core.nn import PoseGraphormer
from dig_core.random import Streams
from dig_core.score import NoiseScore
from dig_core.types import Geometry, Samples

from .data import nearest_form
from .describe import Form, describe_complex
from .pocket import Pocket

__all__ = ["PoseProposal", "bound_to"]

_FORMS = 2**61  # streams from here on choose forms


class PoseProposal:
    """Independent poses (B, L, 3) of a ligand in a pocket, with log-densities, as :class:`dig_core.montecarlo.proposals.Proposal` says.

    A form of the rings is drawn by its share, then a pose in its coordinates. A pose that another form's coordinates strain less does not
    count, so that the forms' laws do not overlap and the density is share times that of the one form: exact, whatever the model.
    """

    exact = True
    gauge = frozenset({"equivalent atoms"})

    def __init__(self, digs: Sequence[DiG], shares: Sequence[float], steps: int | None = None):
        self.digs = list(digs)
        self.parts = [PathProposal(dig, steps=steps) for dig in self.digs]
        self.shares = torch.tensor(shares, dtype=torch.float64) / sum(shares)
        self.size = self.digs[0].descriptor.n_ligand  # type: ignore[attr-defined]

    @torch.no_grad()
    def draw(self, n: int, rng: Streams) -> Samples:
        """``n`` poses, one a stream of ``rng``; ``state`` holds the form's number alone."""
        if len(rng) != n:
            raise IncompatibleError(f"expected one stream for each of {n} poses, got {len(rng)}.")
        chosen = self._forms(rng)
        positions, log_q = torch.empty(n, self.size, 3, dtype=torch.float64), torch.empty(n, dtype=torch.float64)
        valid = torch.zeros(n, dtype=torch.bool)
        for k, part in enumerate(self.parts):
            rows = (chosen == k).nonzero()[:, 0]
            if not len(rows):
                continue
            own = Streams(rng.seed, [rng.indices[r] for r in rows.tolist()])
            found = part.draw(len(rows), own)
            positions[rows] = Bound().labelled(found.geometry, part.dig.descriptor, own).positions[:, : self.size]
            log_q[rows], valid[rows] = found.known_log_q() + self.shares[k].log(), found.valid
        valid &= self.forms(positions) == chosen
        return Samples(Geometry(positions), {"form": chosen}, torch.where(valid, log_q, math.inf), valid, "path")

    @torch.no_grad()
    def log_q(self, geometry: Geometry, rng: Streams) -> Tensor:
        """(B,) float64 of given poses (B, L, 3), over freshly drawn paths."""
        positions = geometry.positions[:, : self.size].double()
        chosen, log_q = self.forms(positions), torch.empty(len(positions), dtype=torch.float64)
        for k, part in enumerate(self.parts):
            rows = (chosen == k).nonzero()[:, 0]
            if len(rows):
                own = Streams(rng.seed, [rng.indices[r] for r in rows.tolist()])
                log_q[rows] = part.log_q(Geometry(positions[rows]), own) + self.shares[k].log()
        return log_q

    def forms(self, positions: Tensor) -> Tensor:
        """(B,) which form each pose (B, L, 3) is of."""
        return nearest_form(positions, [dig.descriptor for dig in self.digs])  # type: ignore[misc]

    def _forms(self, rng: Streams) -> Tensor:
        if len(self.parts) == 1:
            return torch.zeros(len(rng), dtype=torch.long)
        number = Streams(rng.seed, [_FORMS + i for i in rng.indices]).uniform(1)[:, 0]
        return torch.searchsorted(self.shares.cumsum(0), number, right=True).clamp(max=len(self.parts) - 1)


def bound_to(model: DiG, ligand: Chem.Mol, pocket: Pocket, forms: Sequence[Form]) -> list[DiG]:
    """``model`` for each form of ``ligand`` in ``pocket``. UnsupportedError unless it is one of ligands in pockets."""
    if not isinstance(model.model, NoiseScore) or not isinstance(model.model.network, PoseGraphormer):
        raise UnsupportedError(f"the model {model.card.name!r} does not place ligands in pockets: take one of recipes.pockets.")
    coordinates = model.model.network.coordinates
    return [dataclasses.replace(model.on(describe_complex(ligand, pocket, form)), coordinates=coordinates) for form in forms]
