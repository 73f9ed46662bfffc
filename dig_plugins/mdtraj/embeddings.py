"""Embeddings of residues and of their pairs, out of files that sequence models leave."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dig_core.errors import IncompatibleError, UnsupportedError

__all__ = ["Embeddings", "read_embeddings"]

_PICKLES = (".pkl", ".pickle", ".pickle.gz", ".pkl.gz")
_GROUP, _MEANS = "representations", "mean_representations"


class Embeddings(NamedTuple):
    """float32 arrays: ``single`` (N, Cs) of N residues and ``couple`` (N, N, Cp) of their pairs, or None."""

    single: np.ndarray | None
    couple: np.ndarray | None


def read_embeddings(path: str | Path, single: str | int = "single", couple: str = "pair") -> Embeddings:
    """What a file holds, for ``protein(sequence, single=, couple=)``, which tells whether its length fits.

    ``.npz``: arrays ``single`` (N, Cs) and ``pair`` (N, N, Cp), one of them at least, or ``representations/single`` and
    ``representations/pair`` as AlphaFold and OpenFold name them; ``.npy``: one of them, told by its dimensions; ``.pt``: what ESM's extract
    script writes, ``{"representations": {layer: (N, Cs)}}``, of which the last layer is taken, or a tensor of either shape. ``single`` and
    ``couple``: the names under which to look instead, in ``.pt`` a layer (33) and an item such as ``contacts`` (N, N). A leading
    dimension of one is dropped. Nothing is unpickled.

    Raises UnsupportedError for another kind of file, IncompatibleError for one that cannot be read, or whose arrays are not found, have
    other shapes, or are not finite.
    """
    path, single = Path(path), str(single)
    if path.name.lower().endswith(_PICKLES):
        raise UnsupportedError(_pickled(path))
    if path.suffix.lower() not in (".npz", ".npy", ".pt"):
        raise UnsupportedError(f"{path.name}: expected embeddings as .npz (arrays single and pair), .npy, or .pt of ESM.")
    if not path.is_file():
        raise IncompatibleError(f"there is no file {path}: expected embeddings.")
    try:
        found = _read(path, single, couple)
    except Exception as error:  # readers of headers and of archives raise errors of their own, tokenizers' among them
        raise IncompatibleError(f"{path.name} cannot be read as arrays alone, which is all that is read: {error}") from error
    absent = [name for name, usual in ((single, "single"), (couple, "pair")) if name not in found and name != usual]
    if absent or not {single, couple} & found.keys():
        means = f" It has {_MEANS}: extract again with --include per_tok." if _MEANS in found else ""
        there = ", ".join(map(repr, found)) or "nothing"
        raise IncompatibleError(f"{path.name} has no {(absent or [single])[0]!r}; it has {there}.{means}")
    result = Embeddings(_array(found.get(single), 2, single, path.name), _array(found.get(couple), 3, couple, path.name))
    if result.single is not None and result.couple is not None and len(result.single) != len(result.couple):
        raise IncompatibleError(
            f"{path.name}: {single!r} is of {len(result.single)} residues, {couple!r} of {len(result.couple)}: they must be of the same."
        )
    return result


def _read(path: Path, single: str, couple: str) -> dict[str, Any]:
    """Name -> array of what a file holds, without the group that it is in; of an archive only those asked for are read."""
    kind = path.suffix.lower()
    if kind == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            names = {name.removeprefix(f"{_GROUP}/"): name for name in archive.files}
            return {short: archive[name] if short in (single, couple) else None for short, name in names.items()}
    found = np.load(path, allow_pickle=False) if kind == ".npy" else torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(found, np.ndarray | torch.Tensor):
        alone = found.ndim == 2 or (found.ndim == 3 and len(found) == 1)
        return {single if alone else couple: found}
    if not isinstance(found, Mapping):
        raise ValueError(f"expected a dict or a tensor, got {type(found).__name__}")
    group = found.get(_GROUP)
    group = group if isinstance(group, Mapping) else {}
    layers = [key for key in group if isinstance(key, int)]
    last = {"single": group[max(layers)]} if layers else {}
    return {str(key): value for key, value in {**last, **found, **group}.items() if key != _GROUP}


def _array(found, dimensions: int, name: str, file: str) -> np.ndarray | None:
    """(N, C) or, of three ``dimensions``, (N, N, C), float32 and finite."""
    if found is None:
        return None
    array = found.detach().float().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    shape = array.shape
    if array.ndim == dimensions + 1 and len(array) == 1:
        array = array[0]
    if dimensions == 3 and array.ndim == 2:
        array = array[:, :, None]
    wanted = "(N, C)" if dimensions == 2 else "(N, N, C)"
    if array.ndim != dimensions or array.dtype.kind not in "fiu" or (dimensions == 3 and len(array) != array.shape[1]):
        raise IncompatibleError(f"{file}: expected {name!r} to be numbers of shape {wanted}, got {array.dtype} of {shape}.")
    if not np.isfinite(array).all():
        raise IncompatibleError(f"{file}: {name!r} has numbers that are not finite.")
    return np.ascontiguousarray(array, dtype=np.float32)


def _pickled(path: Path) -> str:
    """Why a pickle is not read, and how its owner makes an archive of it."""
    return (
        f"{path.name} is a pickle, which can run any code when it is read; nothing is unpickled here. If you trust it:\n"
        f"    import pickle, numpy\n"
        f"    found = pickle.load(open({path.name!r}, 'rb'))['representations']\n"
        f"    numpy.savez({path.name.split('.')[0] + '.npz'!r}, single=found['single'], pair=found['pair'])"
    )
