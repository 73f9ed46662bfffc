"""A slab and its adsorbate as the descriptor that models of adsorption read."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from ase import Atoms

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.system.descriptor import Descriptor
from dig_core.system.surface import surface

from .place import as_adsorbate, place_adsorbate
from .role import check_slab, roles

__all__ = ["at_temperature", "check_scope", "describe_adsorption", "place_and_describe", "temperature_of"]

_REFERENCE = 1000.0
"""K at which the condition ln(T / 1000 K) of a descriptor is zero."""


def describe_adsorption(
    atoms: Atoms, adsorbate_indices, *, temperature: float, anchor: int | None = None, yielding: bool = False
) -> Descriptor:
    """Descriptor of ``atoms``, a slab with an adsorbate on one side.

    Parameters
    ----------
    adsorbate_indices: the adsorbate's atoms. anchor: the index among them of the one that binds, the first if None.
    temperature: K. yielding: slab atoms that no FixAtoms holds may move; otherwise the whole slab stays as it is given.

    Raises
    ------
    IncompatibleError: no vacuum, the wrong axis periodic, an adsorbate inside the slab, indices out of range, no temperature.
    """
    found = roles(atoms, adsorbate_indices)
    if not len(found.adsorbate):
        raise IncompatibleError("expected the adsorbate's indices, got none: place one first (place_adsorbate).")
    frame = check_slab(atoms, found)
    # The vacuum axis is the cell vector that leaves the surface plane.
    vacuum = int(np.abs(atoms.cell.array @ frame.normal).argmax())
    order = [int(i) for i in found.adsorbate]
    if anchor is not None:
        anchor = int(anchor) % len(atoms)
        if anchor not in order:
            raise IncompatibleError(f"the anchor, atom {anchor}, is not one of the adsorbate's atoms {order}.")
        order = [anchor, *(i for i in order if i != anchor)]
    free = found.free if yielding else ()
    made = surface(
        torch.as_tensor(atoms.numbers), torch.as_tensor(atoms.positions), torch.as_tensor(atoms.cell.array), order,
        free=torch.as_tensor(np.asarray(free, dtype=np.int64)), vacuum=vacuum,
    )  # fmt: skip
    return at_temperature(made, temperature)


def place_and_describe(
    slab: Atoms, adsorbate, *, temperature: float, normal=None, anchor: int | None = None, yielding: bool = False
) -> tuple[Descriptor, Atoms]:
    """The descriptor of ``adsorbate`` somewhere on ``slab``, and that structure, adsorbate last; arguments as of ``sample_adsorption``."""
    guest, anchor = as_adsorbate(adsorbate, anchor)
    placed = place_adsorbate(slab, guest, (0.0, 0.0), normal=normal, anchor=anchor)
    indices = np.arange(len(slab), len(placed))
    return describe_adsorption(placed, indices, temperature=temperature, anchor=len(slab) + anchor, yielding=yielding), placed


def at_temperature(descriptor: Descriptor, temperature: float) -> Descriptor:
    """The same system at another temperature, K."""
    if not temperature > 0:
        raise IncompatibleError(f"expected a temperature in K, got {temperature!r}.")
    conditions = torch.tensor([math.log(temperature / _REFERENCE)], dtype=torch.float64)
    return replace(descriptor, conditions=conditions)


def temperature_of(descriptor: Descriptor) -> float:
    """K, of a descriptor made :func:`at_temperature`."""
    return _REFERENCE * math.exp(float(descriptor.conditions[0]))


def check_scope(dig: DiG, slab: Atoms, guest: Atoms, temperature: float) -> None:
    """Refuse what the model has never seen, by name: elements of the slab, the adsorbate, the temperature.

    Raises UnsupportedError; models that do not say what they know are not checked.
    """
    scope = dig.card.scope
    formula, elements = guest.get_chemical_formula(mode="hill"), sorted(set(slab.symbols))
    strange = [symbol for symbol in elements if symbol not in scope.get("slab", elements)]
    wrong = [f"{', '.join(strange)} in the slab (it knows {', '.join(scope['slab'])})"] if strange else []
    if formula not in scope.get("adsorbate", [formula]):
        wrong.append(f"the adsorbate {formula} (it knows {', '.join(scope['adsorbate'])})")
    low, high = scope.get("temperature", [0.0, math.inf])
    if not low <= temperature <= high:
        wrong.append(f"{temperature:g} K (it knows {low:g} to {high:g} K)")
    if wrong:
        raise UnsupportedError(
            f"the model {dig.card.name!r} has not been trained on {'; '.join(wrong)}. Train on it with fit_adsorption, "
            "or pass unseen=True to take its guess: with an energy, weights and chains stay exact."
        )
