"""What a model is asked about: its system, how structures of that are read, and their energy where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dig_core.dig import DiG
from dig_core.energy import Energy
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.types import Geometry

from .. import models

__all__ = ["KINDS", "Given", "Subject", "kind_of", "subject", "temperature_of"]

KINDS = ("molecule", "conformers", "protein", "crystal", "adsorbate")


class Given(NamedTuple):
    """What a model does not say itself.

    ``of``: a PDB structure for a molecule in OpenMM, with ``force_field`` files; SMILES or an SDF file for conformers; a structure (PDB,
    mmCIF) for any protein; a composition such as "C8" for crystals; the file of a slab for an ``adsorbate``. ``temperature`` K, if the
    model has none. ``calculator``: the energy of crystals and adsorbates, by name, see
    :func:`dig_plugins.ase.calculator_named`; ``pressure`` GPa.
    """

    of: str | None = None
    force_field: tuple[str, ...] = ()
    temperature: float | None = None
    adsorbate: str | None = None
    calculator: str | None = None
    pressure: float = 0.0


@dataclass(frozen=True)
class Subject:
    """A model bound to its system.

    ``kind``: one of :data:`KINDS`. ``read`` gives the structures of a file. ``energy``: u = E/kT, None where the model has none to be
    weighed by, and ``energy_name``; ``peer``: makes the same energy, computed in another way. ``system``: the engine's own object.
    ``packages``: what the record names.
    """

    dig: DiG
    kind: str
    read: Callable[[str | Path], Geometry]
    energy: Energy | None = None
    energy_name: str = ""
    temperature: float | None = None
    peer: Callable[[], Energy] | None = None
    system: Any = None
    packages: tuple[str, ...] = ()


def subject(model: str | Path, given: Given | None = None) -> Subject:
    """The model of that name or file, bound to its own system or to the ``given`` one.

    Raises IncompatibleError where something more must be given, UnsupportedError for a model of something that no verb knows, and what
    the readers of its system raise.
    """
    from . import makers

    dig, given = models.load(model), given or Given()
    return getattr(makers, kind_of(dig))(dig, str(model), given)


def kind_of(dig: DiG) -> str:
    """One of :data:`KINDS`. UnsupportedError for anything else."""
    coordinates = type(dig.coordinates).__name__
    if coordinates in ("Internal", "Cartesian"):
        return "conformers" if "RDKit" in dig.card.energy else "molecule"
    named = {"Backbone": "protein", "Crystal": "crystal", "Adsorbate": "adsorbate"}
    if coordinates not in named:
        raise UnsupportedError(f"the model {dig.card.name!r} has {coordinates} coordinates, which no verb knows: use it from Python.")
    return named[coordinates]


def temperature_of(dig: DiG, given: Given) -> float:
    """In K, the model's own unless another is given."""
    found = dig.card.temperature if given.temperature is None else given.temperature
    if found is None:
        raise IncompatibleError(f"the model {dig.card.name!r} has no temperature of its own: give one.")
    return float(found)
