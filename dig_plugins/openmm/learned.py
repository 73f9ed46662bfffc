"""A checkpoint as the law MD follows: its log-density in Cartesian coordinates, or a function with the same gradient."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from dig_core.coordinates import Internal
from dig_core.dig import DiG
from dig_core.errors import CheckpointError, IncompatibleError, StateError
from dig_core.types import Geometry

from .. import models

__all__ = ["LearnedLaw", "Source", "identify", "load", "load_dig"]

Source = tuple[str, str]
"""A shipped model's name or a checkpoint's absolute path, and the sha256 of its file: what a model travels as."""

_FAR = 20.0  # widths; 300 K keeps within 5, and bonds a tenth of an Angstrom off within 10
_LOADED: dict[str, LearnedLaw] = {}


def identify(model: str | Path) -> Source:
    """Name or absolute path, and sha256, of a model.

    Raises IncompatibleError for a model in memory, CheckpointError for a name that is not shipped or a file that is not there.
    """
    if not isinstance(model, (str, Path)):
        name = model.card.name if isinstance(model, DiG) else type(model).__name__
        raise IncompatibleError(
            f"expected a shipped model's name or the path of a checkpoint, got {name!r} in memory. Forces are copied and stored with "
            "their System, and a copy finds its model by file: write it with dig.save('model.safetensors') and pass that path."
        )
    given = Path(model)
    source = str(given.resolve()) if given.suffix or len(given.parts) > 1 else str(model)
    return source, _digest(source)


def load(source: str, sha256: str) -> LearnedLaw:
    """The law of a checkpoint, read once a process. Raises CheckpointError if the file is gone or no longer has this sha256."""
    if sha256 not in _LOADED:
        _LOADED[sha256] = LearnedLaw(load_dig(source, sha256))
    return _LOADED[sha256]


def load_dig(source: str, sha256: str) -> DiG:
    """The model itself. Raises CheckpointError if the file is gone or no longer has this sha256."""
    found = _digest(source)
    if found != sha256:
        raise CheckpointError(
            f"the checkpoint {source} has changed since it was named: expected sha256 {sha256[:12]}..., found {found[:12]}... "
            "Put the file back, or make what uses it again."
        )
    return DiG.load(_file(source))


def _file(source: str) -> Path:
    return Path(source) if Path(source).is_absolute() else models.path(source)


def _digest(source: str) -> str:
    file = _file(source)
    if not file.is_file():
        raise CheckpointError(f"no checkpoint at {file}: expected a file that dig.save has written, where it was when the force was made.")
    return hashlib.sha256(file.read_bytes()).hexdigest()


class LearnedLaw(nn.Module):
    """log q_t of one molecule over Cartesian coordinates: log q_t(state) plus the log-volume of encoding, all in float64.

    ``conservative``: whether the score is a gradient, so that there is a density to speak of. Labels of equivalent end atoms
    (methyl hydrogens) are followed rather than folded into one third of a turn. Folding sees the coordinates jump from one
    third to the next, and with them the force; followed, the law is the same in the model's coordinates and smooth.
    """

    def __init__(self, dig: DiG):
        super().__init__()
        if not isinstance(dig.model, nn.Module):
            raise IncompatibleError(f"expected a network as the model, got {type(dig.model).__name__}.")
        # Products in bfloat16 leave errors of 0.1 in the score, and one structure at a time costs the same in float64.
        self.model = dig.model.double().eval().requires_grad_(False)
        self.descriptor, self.card = dig.descriptor, dig.card
        self.conservative = bool(dig.model.conservative)
        self.coordinates = _followed(dig.coordinates)

    @property
    def n_atoms(self) -> int:
        return self.descriptor.n_atoms

    def log_density(self, positions: Tensor, t: Tensor) -> Tensor:
        """(B,) for (B, N, 3) Angstrom at noise time ``t`` (1,): log q_t up to a constant of t, differentiable.

        For a model that is not conservative the value means nothing and its gradient is the score, pulled back.
        """
        state, log_det = self.coordinates.encode(Geometry(positions), self.descriptor)
        if self.conservative:
            return self.model.log_density(state, t, self.descriptor) + log_det
        score = self.model({name: x.detach() for name, x in state.items()}, t, self.descriptor)
        return sum((state[name] * score[name].detach()).flatten(1).sum(1) for name in state) + log_det

    def evaluate(self, positions: Tensor, t: float) -> tuple[float, Tensor]:
        """log q_t (0.0 unless conservative) and its gradient (N, 3), 1/Angstrom, at one structure (N, 3) Angstrom."""
        time = torch.tensor([t], dtype=torch.float64)
        # Whatever mode the caller is in: this runs in the middle of an integrator's step.
        with torch.inference_mode(False), torch.enable_grad():
            x = (positions - positions.mean(dim=0)).clone().requires_grad_()
            value = self.log_density(x[None], time)
            gradient = torch.autograd.grad(value.sum(), x)[0]
        return float(value.detach()) if self.conservative else 0.0, gradient

    def check_near(self, positions: Tensor) -> None:
        """Raise StateError for a structure (N, 3) Angstrom far outside the model's ensemble, where its forces mean nothing."""
        coordinates = self.coordinates
        if not isinstance(coordinates, Internal):
            return
        state, _ = coordinates.encode(Geometry(positions[None]), self.descriptor)
        widths = torch.linalg.solve(coordinates.whitening, state["shape"][0]).abs()
        if float(widths.max()) > _FAR:
            worst = int(widths.argmax())
            raise StateError(
                f"the bond, angle or torsion of atoms {coordinates.shape_atoms[worst]} is {float(widths[worst]):.0f} widths from its "
                f"centre, expected at most {_FAR:g}: the model knows nothing of such structures. Either the dynamics blew up (shorter "
                "time step, more friction), or atoms come in another order than the model's (hydrogens of one carbon among them)."
            )


class _Followed(Internal):
    """Internal coordinates of atoms as they are labelled."""

    def _relabel(self, positions: Tensor) -> Tensor:
        return positions


def _followed(coordinates):
    if not isinstance(coordinates, Internal):
        return coordinates
    return _Followed(coordinates.zmatrix, coordinates.centre, coordinates.width, coordinates.whitening)
