"""Checkpoints: one safetensors file whose JSON header rebuilds everything, of parts that are installed; nothing is unpickled."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .coordinates import Adsorbate, Backbone, Bound, Cartesian, Crystal, Internal
from .devices import device_of, put
from .diffusion import (
    SO3,
    Cosine,
    Diffusion,
    Euclidean,
    Geometric,
    Joint,
    Karras,
    Lattice,
    Linear,
    LogSNR,
    Sigmoid,
    Torus,
    ZeroCentroid,
)
from .dig import Card, DiG
from .errors import CheckpointError
from .files import write_atomically
from .nn import NETWORKS
from .plugins import PARTS, offer
from .score import EnergyScore, NoiseScore
from .system.descriptor import Descriptor
from .tensors import from_bytes, to_bytes
from .types import Geometry

__all__ = ["SCHEMA", "arrived", "dumps", "load", "loads", "save"]

SCHEMA = 1
_SPACES = (Euclidean, Lattice, SO3, Torus, ZeroCentroid)
_BUILDERS = {cls.__name__: cls for cls in (*_SPACES, Linear, Sigmoid, Cosine, LogSNR, Geometric, Karras)}
_COORDINATES = {cls.__name__: cls for cls in (Adsorbate, Backbone, Bound, Cartesian, Crystal, Internal)}
_SCORES = {"NoiseScore": NoiseScore, "EnergyScore": EnergyScore}


def save(dig: DiG, path: str | Path) -> None:
    """Write ``dig`` to ``path``: complete or not at all. Raises :class:`CheckpointError` for parts that could not be read back."""
    write_atomically(Path(path), dumps(dig))


def dumps(dig: DiG) -> bytes:
    """The content of a checkpoint file, which is also how a model travels to other processes. Raises as :func:`save`."""
    score = type(dig.model).__name__
    if score not in _SCORES:
        raise CheckpointError(f"cannot save a {score!r}, this version knows {sorted(_SCORES)}. Save the model inside it.")
    network: Any = getattr(dig.model, "network" if score == "NoiseScore" else "potential")
    coordinates: Any = dig.coordinates
    header = {
        "schema": SCHEMA,
        "score": score,
        "network": _part(network, NETWORKS),
        "process": {name: [_part(p.space, _BUILDERS), _part(p.schedule, _BUILDERS)] for name, p in dig.process.items()},
        "coordinates": _part(coordinates, _COORDINATES),
        "descriptor": {"schema": dig.descriptor.schema},
        "card": asdict(dig.card),
    }
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"coordinates.{k}": v for k, v in coordinates.state_dict().items()}
    for name in ("numbers", "node", "pair", "bonds", "mobile", "pbc", "conditions"):
        tensors[f"descriptor.{name}"] = getattr(dig.descriptor, name)
    for name in ("single", "couple"):
        if getattr(dig.descriptor, name) is not None:
            tensors[f"descriptor.{name}"] = getattr(dig.descriptor, name)
    if dig.descriptor.reference is not None:
        tensors["descriptor.reference"] = dig.descriptor.reference.positions
        if dig.descriptor.reference.cell is not None:
            tensors["descriptor.cell"] = dig.descriptor.reference.cell
    try:
        text = json.dumps(header)
    except TypeError as error:
        raise CheckpointError(f"the card or a config cannot be saved ({error}): use numbers, strings, lists and dicts.") from error
    return to_bytes(tensors, dig=text)


def load(path: str | Path) -> DiG:
    """Read a checkpoint. Raises :class:`CheckpointError` if it is missing, damaged or of another schema."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: expected a .safetensors file that DiG.save has written.")
    return loads(path.read_bytes(), path)


def loads(content: bytes, path: str | Path = "the checkpoint") -> DiG:
    """A model from the content of a checkpoint file, which errors call ``path``. Raises as :func:`load`."""
    tensors, about = from_bytes(content, path)
    header = _header(about, path)
    if header.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} has checkpoint schema {header.get('schema')}, this version reads schema {SCHEMA}: "
            "install a dig-plugins that matches the checkpoint."
        )
    try:
        return _build(header, tensors)
    except _UnknownPart as error:
        raise CheckpointError(f"{path}: {error} Install a dig-plugins that matches the checkpoint.") from error
    except Exception as error:  # a header can ask for anything, and parts raise what they like on it
        raise CheckpointError(f"{path} cannot be rebuilt: {type(error).__name__}: {error}. It is incomplete or was edited.") from error


def arrived(content: bytes) -> DiG:
    """:func:`loads` in another process, where :func:`.devices.device_of` says on what."""
    dig = loads(content)
    put(dig.model, device_of())
    return dig


class _UnknownPart(CheckpointError):
    """A kind of part that this version does not have."""


def _part(thing, kinds: dict) -> dict:
    name = type(thing).__name__
    if type(thing) not in kinds.values() and type(thing) is not offer(PARTS, name):
        raise CheckpointError(f"cannot save a {name!r}, this version knows {sorted(kinds)}, and what packages offer as {PARTS}.")
    return {"type": name, "config": thing.config}


def _header(about: dict[str, str], path: str | Path) -> dict:
    try:
        header = json.loads(about.get("dig", "null"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not a readable checkpoint ({error}): it is damaged or truncated, get it again.") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is a safetensors file without a dig header: it was not written by DiG.save.")
    return header


def _named(kinds: dict, name: str):
    found = kinds.get(name) or offer(PARTS, name)
    if found is None:
        raise _UnknownPart(f"the checkpoint holds a {name!r}, this version knows {sorted(kinds)}.")
    return found


def _build(header: dict, tensors: dict[str, torch.Tensor]) -> DiG:
    def of(prefix: str) -> dict:
        return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}

    process = Joint(
        **{
            name: Diffusion(*(_named(_BUILDERS, part["type"])(**part["config"]) for part in parts))
            for name, parts in header["process"].items()
        }
    )
    network = _named(NETWORKS, header["network"]["type"])(**header["network"]["config"])
    network.load_state_dict(of("network."))
    coordinates = _named(_COORDINATES, header["coordinates"]["type"]).from_config(**header["coordinates"]["config"])
    coordinates.load_state_dict(of("coordinates."))
    given = of("descriptor.")
    reference, cell = given.pop("reference", None), given.pop("cell", None)
    descriptor = Descriptor(
        **given, reference=None if reference is None else Geometry(reference, cell), schema=header["descriptor"]["schema"]
    )
    model = _named(_SCORES, header["score"])(network, process).eval().requires_grad_(False)
    return DiG(model, coordinates, descriptor, Card(**header["card"]))
