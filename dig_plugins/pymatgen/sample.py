"""Crystals of a composition from a model, with wanted properties or without."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Composition, Element
from torch import Tensor

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.random import Streams, as_seed
from dig_core.sampling.guidance import Property, PropertyGuidance
from dig_core.sampling.likelihoods import Likelihood, Range, Value
from dig_core.sampling.rejection import accepted
from dig_core.system.crystal import crystal
from dig_core.system.descriptor import Descriptor
from dig_core.types import Geometry, Samples

from .. import models
from .convert import atomic_numbers, to_structures, whole
from .designs import Designs

__all__ = ["design"]

_GAP = "gap"


def design(
    composition: str | Mapping[str, int] | Composition, n: int, *, model: DiG | str | Path = "carbon", target: Any = None,
    predictor: Any = None, by: str = "rejection", strength: float = 1.0, width: float | Mapping[str, float] = 0.25,
    seed: int | None = None, steps: int | None = None, method: str = "path", through: str = "model", batch: int = 128,
    most: int | None = None,
) -> Designs:  # fmt: skip
    """``n`` crystals of a composition, drawn to meet the targets if there are any.

    Nothing is relaxed. With ``by="rejection"`` the designs are independent draws of the model's law times the likelihood of the targets,
    exactly, and cost one over its probability: some 15 draws a design where one crystal in 15 has what is wanted. ``by="guidance"`` pulls
    every draw towards the targets instead, which pays where they are rarer than that; its designs need their weights to be exact, and one
    of which a predictor returns NaN is kept, marked as not valid and counted.

    Parameters
    ----------
    composition: atoms in the cell, ``"C8"`` or ``{"C": 8}``. Without numbers (``"C"``, ``"SiC"``) it is a ratio, and the number of
        atoms is drawn from those that the model was trained on.
    model: a shipped model's name, a checkpoint, or a DiG.
    target: None draws from the model as it is. A number, a range (low, high) either end of which may be infinite, or any
        :class:`~dig_core.sampling.likelihoods.Likelihood` such as ``Bins``; a mapping from name to one of these for several
        properties. Of a property called "gap" a target of 0 or less asks for any metal: gaps are predicted as negative where bands overlap.
    predictor: differentiable, called with a Geometry (and ``descriptor`` or its ``numbers``, if it has an argument of that name),
        returns (B,) values in its own unit. A mapping for several, by the names of the targets. A single one is called "gap",
        and None is the tight-binding gap of carbon, eV.
    by: "rejection" or "guidance". most: draws at which rejection gives up, 1,000 + 100 n if None; what it has by then is returned.
    strength: 1 is Bayes' rule, more concentrates. width: standard deviation of a target, and of the edges of a range.
    steps, method: of the sampler; ``"path"`` gives log_q and, with a target, weights; solvers' names do not.
    through: of guidance, see :class:`~dig_core.sampling.guidance.PropertyGuidance`.

    Raises
    ------
    UnsupportedError: elements that the model does not know. IncompatibleError: a composition without whole numbers of atoms, a target
    without its predictor.
    """
    dig = model if isinstance(model, DiG) else models.load(model)
    seed, n = as_seed(seed), int(n)
    if n < 1 or by not in ("rejection", "guidance"):
        raise IncompatibleError(f'expected at least one structure, by "rejection" or "guidance", got n = {n} and by = {by!r}.')
    wanted = _wanted(target, predictor, width)
    notes = [note for name, (likelihood, find) in wanted.items() for note in _outside(name, likelihood, find)]
    properties = [Property(_called(find), likelihood, name) for name, (likelihood, find) in wanted.items()]
    guidance = (PropertyGuidance(*properties, strength=strength, through=through),) if properties else ()
    options = {"seed": seed, "steps": steps, "method": method, "batch": batch}
    if guidance and by == "rejection":
        most = 1000 + 100 * n if most is None else int(most)
        drawn, more, how = _accepted(composition, n, dig, guidance[0], strength, most, options)
    else:
        (drawn, more), how = _drawn(composition, n, dig, guidance, 0, options), "guidance" if wanted else "unguided"
    found = _joined(drawn, wanted)
    if by == "rejection" and len(found["structures"]) > n:
        found = _some(found, n, Streams.chain(seed, 2**33))
    notes += more + _missed(found["properties"], wanted)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    source = f"{dig.card.name}, {how}, {method}, {dig.card.steps if steps is None else steps} steps"
    targets = {name: _words(likelihood) for name, (likelihood, _) in wanted.items()}
    return Designs(**found, targets=targets, source=source, seed=seed, notes=tuple(notes))


_Drawn = list[tuple[Descriptor, Samples]]


def _drawn(composition: Any, n: int, dig: DiG, guidance: Sequence[PropertyGuidance], start: int, options: dict) -> tuple[_Drawn, list[str]]:
    """Draws ``start`` to ``start + n``, their sizes from the training histogram where the composition leaves them open; and notes."""
    cells, notes = _cells(composition, n, dig, Streams.chain(options["seed"], start))
    drawn: _Drawn = []
    for numbers, count in cells:
        descriptor = crystal(numbers)
        drawn += [(descriptor, x) for x in dig.on(descriptor).stream(count, start=start, guidance=guidance, **options)]
        start += count
    return drawn, notes


def _accepted(
    composition: Any, n: int, dig: DiG, guidance: PropertyGuidance, strength: float, most: int, options: dict
) -> tuple[_Drawn, list[str], str]:
    """At least ``n`` draws that the condition accepts, round by round; notes; and of how many draws they are, in words."""
    rng, found, count, draws, unknown, notes = Streams.chain(options["seed"], 2**32), _Drawn(), 0, 0, 0, list[str]()
    while count < n and draws < most:
        size = min(max(64, n), most - draws)
        fresh, notes = _drawn(composition, size, dig, (), draws, options)
        draws += size
        for descriptor, samples in fresh:
            kept, failed = accepted(dig.on(descriptor), samples, guidance, rng=rng, strength=strength)
            unknown += failed
            found.append((descriptor, kept))
            count += len(kept.valid)
    rarity = f"{count} of {draws} draws" + (f", {unknown} without a structure or prediction" if unknown else "")
    if count < n:
        notes = [*notes, f"Only {rarity} meet the targets, {n} were asked for: raise most, widen the targets, or ask by guidance."]
    return found, notes, f"rejection ({rarity})"


def _some(found: dict[str, Any], n: int, rng: np.random.Generator) -> dict[str, Any]:
    """``n`` of the designs at random: the first would be those of the smallest cells."""
    chosen = np.sort(rng.permutation(len(found["structures"]))[:n])
    fields = {name: x if not isinstance(x, np.ndarray) else x[chosen] for name, x in found.items()}
    properties = {name: x[chosen] for name, x in found["properties"].items()}
    return fields | {"structures": tuple(found["structures"][i] for i in chosen), "properties": properties}


def _wanted(target: Any, predictor: Any, width: float | Mapping[str, float]) -> dict[str, tuple[Likelihood, Callable]]:
    """Name -> likelihood and predictor."""
    if target is None:
        if predictor is not None:
            raise IncompatibleError("a predictor without a target guides nowhere: say what is wanted of it.")
        return {}
    targets = dict(target) if isinstance(target, Mapping) else {_GAP: target}
    if predictor is None and set(targets) == {_GAP}:
        from .gap import TightBindingGap

        predictor = TightBindingGap()
    predictors = dict(predictor) if isinstance(predictor, Mapping) else {next(iter(targets)): predictor}
    if set(predictors) != set(targets) or not all(callable(find) for find in predictors.values()):
        raise IncompatibleError(
            f"expected a predictor for each target {sorted(targets)}, got predictors of {sorted(predictors)}."
        )
    widths = dict(width) if isinstance(width, Mapping) else dict.fromkeys(targets, width)
    if not set(targets) <= set(widths):
        raise IncompatibleError(f"expected a width for each target {sorted(targets)}, got {sorted(widths)}.")
    return {name: (_likelihood(name, asked, widths[name]), predictors[name]) for name, asked in targets.items()}


def _likelihood(name: str, asked: Any, width: float) -> Likelihood:
    if callable(asked):
        return asked
    if isinstance(asked, int | float):
        return Range(-math.inf, 0.0, width) if name == _GAP and asked <= 0 else Value(asked, width)
    try:
        low, high = (float(x) for x in asked)
    except (TypeError, ValueError) as error:
        raise IncompatibleError(
            f"expected the target of {name} as a number, (low, high) or a Likelihood, got {asked!r}."
        ) from error
    return Range(-math.inf if name == _GAP and low <= 0 else low, high, width)


def _called(find: Callable) -> Callable[[Geometry, Descriptor], Tensor]:
    """The predictor as guidance calls it."""
    try:
        names = set(inspect.signature(getattr(find, "forward", find)).parameters)
    except (TypeError, ValueError):
        names = set()
    if "descriptor" in names:
        return lambda geometry, descriptor: find(geometry, descriptor=descriptor)
    if "numbers" in names:
        return lambda geometry, descriptor: find(geometry, numbers=descriptor.numbers)
    return lambda geometry, descriptor: find(geometry)


def _interval(likelihood: Likelihood) -> tuple[float, float] | None:
    """What a target asks for, as an interval; None for one's own likelihood."""
    if isinstance(likelihood, Value):
        return likelihood.target - likelihood.width, likelihood.target + likelihood.width
    if isinstance(likelihood, Range):
        return likelihood.low - likelihood.width, likelihood.high + likelihood.width
    return None


def _words(likelihood: Likelihood) -> str:
    if isinstance(likelihood, Value):
        return f"{likelihood.target:g}, width {likelihood.width:g}"
    if isinstance(likelihood, Range):
        return f"{likelihood.low:g} to {likelihood.high:g}, edges {likelihood.width:g} wide"
    return type(likelihood).__name__


def _outside(name: str, likelihood: Likelihood, find: Callable) -> list[str]:
    """A predictor that knows its ``range`` (low, high) says so if it cannot reach the target."""
    known, asked = getattr(find, "range", None), _interval(likelihood)
    if known is None or asked is None or (asked[0] <= known[1] and asked[1] >= known[0]):
        return []
    made = f"{known[0]:g} to {known[1]:g}"
    return [
        f"The target of {name}, {_words(likelihood)}, is outside what its predictor was made for, {made}: it extrapolates."
    ]


def _missed(properties: dict[str, np.ndarray], wanted: Mapping[str, tuple[Likelihood, Callable]]) -> list[str]:
    """Of targets that no structure came near, by the predictor's own word."""
    notes = []
    for name, (likelihood, _) in wanted.items():
        asked, values = _interval(likelihood), properties[name][np.isfinite(properties[name])]
        if asked is None or ((values >= asked[0]) & (values <= asked[1])).any():
            continue
        reach = f"they range from {values.min():.2f} to {values.max():.2f}" if len(values) else "none has a prediction"
        notes.append(f"No structure has {name} within {_words(likelihood)}: {reach}.")
    return notes


def _cells(composition, n: int, dig: DiG, rng: np.random.Generator) -> tuple[list[tuple[list[int], int]], list[str]]:
    """Atomic numbers of a cell and how many structures of it, small cells first; and what is to be said of them."""
    exact = not isinstance(composition, str) or any(letter.isdigit() for letter in composition)
    unit = atomic_numbers(composition)
    symbols = {Element.from_Z(number).symbol for number in unit}
    known = dig.card.scope.get("element")
    if known and not symbols <= set(known):
        named = f"{', '.join(known)}, got {', '.join(sorted(symbols))}"
        raise UnsupportedError(f"the model {dig.card.name!r} knows {named}: train one on them.")
    sizes = {1: n} if exact else _sizes(len(unit), n, dig, rng)
    cells = [(sorted(unit * times), count) for times, count in sorted(sizes.items())]
    least, most = dig.card.scope.get("atoms", (1, math.inf))
    odd = sorted({len(numbers) for numbers, _ in cells if not least <= len(numbers) <= most})
    return cells, [
        f"The model {dig.card.name!r} was trained on {least} to {most} atoms in the cell; {odd} are its guess."
    ] if odd else []


def _sizes(unit: int, n: int, dig: DiG, rng: np.random.Generator) -> dict[int, int]:
    """Formula units in the cell -> how many of ``n`` structures, drawn from the training histogram."""
    histogram = {
        int(size) // unit: float(count) for size, count in dig.card.scope.get("histogram", ()) if int(size) % unit == 0
    }
    if not histogram:
        raise IncompatibleError(
            f"the model {dig.card.name!r} does not say on how many atoms it was trained: give their number, such as 'C8' for 'C'."
        )
    chosen = rng.choice(
        list(histogram), size=n, p=np.array(list(histogram.values())) / sum(histogram.values())
    )
    return {int(size): int(count) for size, count in zip(*np.unique(chosen, return_counts=True), strict=True)}


def _joined(drawn: list[tuple[Descriptor, Samples]], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Designs; draws that have no structure are counted and left out."""
    structures, failed, columns = [], 0, {name: [] for name in ("log_q", "log_likelihood", "log_weight")}
    properties, valid = {name: [] for name in wanted}, []
    for descriptor, samples in drawn:
        kept = whole(samples.geometry) & samples.valid
        failed += int((~kept).sum())
        structures += to_structures(Geometry(samples.geometry.positions[kept], samples.geometry.cell[kept]), descriptor)
        predicted = {name: samples.properties[name][kept].double().cpu().numpy() for name in wanted}
        good = (
            np.isfinite(np.array(list(predicted.values()))).all(0) if wanted else np.ones(int(kept.sum()), dtype=bool)
        )
        valid.append(good)
        for name, values in predicted.items():
            properties[name].append(values)
        for name, parts in columns.items():
            value = getattr(samples, name)
            parts += [] if value is None else [value[kept].double().cpu().numpy()]
    numbers = {name: np.concatenate(parts) if parts else None for name, parts in columns.items()}
    return numbers | {
        "structures": tuple(structures), "valid": np.concatenate(valid), "failed": failed,
        "properties": {name: np.concatenate(parts) for name, parts in properties.items()},
    }  # fmt: skip
