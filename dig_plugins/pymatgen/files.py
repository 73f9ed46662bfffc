"""Lists of structures as files: CIF, extended XYZ, JSON; what was computed of each travels with it."""

from __future__ import annotations

import gzip
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pymatgen.core import Structure
from pymatgen.io.cif import CifFile, CifParser, CifWriter

from dig_core.errors import IncompatibleError
from dig_core.files import write_atomically

from ..xyz import check_counts
from .convert import from_atoms, plain, to_atoms

__all__ = ["read_structures", "write_structures"]

_TAG = "_dig_"
_SUFFIXES = (".cif", ".extxyz", ".json")


def write_structures(path: str | Path, structures: Sequence[Structure]) -> None:
    """All structures in one file, ``.cif``, ``.extxyz`` or ``.json``, also with ``.gz``; an existing one is replaced.

    ``properties`` go along: as ``_dig_*`` items of each CIF block (numbers and strings), in ``info`` of extended XYZ (the same), all
    of them in JSON. Raises IncompatibleError for another name or no structure.
    """
    path, structures = Path(path), list(structures)
    kind = _kind(path)
    if not structures:
        raise IncompatibleError(f"expected at least one structure to write to {path.name}, got none.")
    text = {".cif": _to_cif, ".extxyz": _to_extxyz, ".json": _to_json}[kind](structures)
    data = text.encode()
    write_atomically(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def read_structures(path: str | Path) -> list[Structure]:
    """All structures of a CIF, extended XYZ or JSON file, one of any other that pymatgen knows by its name; properties included.

    CIF blocks are read as they are, without reduction to a primitive cell.
    """
    path = Path(path)
    try:
        if _stem_suffix(path) not in _SUFFIXES:
            return [Structure.from_file(str(path))]
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        found = {".cif": _from_cif, ".extxyz": _from_extxyz, ".json": _from_json}[_stem_suffix(path)](text)
    except OSError:
        raise
    except Exception as error:  # whatever pymatgen and ASE raise on what they cannot read
        raise IncompatibleError(f"{path} cannot be read as crystal structures: {type(error).__name__}: {error}") from error
    if not found:
        raise IncompatibleError(f"{path} holds no structure.")
    return found


def _to_json(structures: list[Structure]) -> str:
    rows = []
    for structure in structures:
        row = structure.as_dict()
        row["properties"] = {key: _json_value(value) for key, value in structure.properties.items()}
        rows.append(row)
    return json.dumps(rows)


def _json_value(value):
    value = plain(value.tolist() if isinstance(value, np.ndarray) else value)
    # JSON has no such numbers; None reads back as unknown.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(text: str) -> list[Structure]:
    rows = json.loads(text)
    return [Structure.from_dict(row) for row in (rows if isinstance(rows, list) else [rows])]


def _to_extxyz(structures: list[Structure]) -> str:
    import io

    import ase.io

    buffer = io.StringIO()
    ase.io.write(buffer, [to_atoms(structure) for structure in structures], format="extxyz")
    return buffer.getvalue()


def _from_extxyz(text: str) -> list[Structure]:
    import io

    import ase.io

    check_counts(text.encode())
    return [from_atoms(atoms) for atoms in ase.io.read(io.StringIO(text), index=":", format="extxyz")]


def _to_cif(structures: list[Structure]) -> str:
    blocks = []
    for number, structure in enumerate(structures):
        # Twelve digits: reading back and writing again changes nothing.
        text = str(CifWriter(structure, significant_figures=12))
        head, _, body = text[text.index("data_") :].partition("\n")
        items = [
            f"{_TAG}{key}   {_cif_value(plain(value))}" for key, value in structure.properties.items() if _told(value)
        ]
        blocks.append("\n".join([f"{head}_{number}", *items, body]))
    return "# generated using pymatgen\n" + "\n".join(blocks)


def _told(value) -> bool:
    return isinstance(value, int | float | str | bool | np.generic)


def _cif_value(value) -> str:
    return f"'{value}'" if isinstance(value, str) else repr(value)


def _from_cif(text: str) -> list[Structure]:
    structures = []
    for block in CifFile.from_str(text).data.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (structure,) = CifParser.from_str(str(block)).parse_structures(primitive=False, check_occu=False)
        structure.properties = {
            key[len(_TAG) :]: _value(word) for key, word in block.data.items() if key.startswith(_TAG)
        }
        structures.append(structure)
    return structures


def _value(word: str) -> str | int | float | bool:
    if word in ("True", "False"):
        return word == "True"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _stem_suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _kind(path: Path) -> str:
    if _stem_suffix(path) not in _SUFFIXES:
        raise IncompatibleError(
            f"expected a file name ending in {', '.join(_SUFFIXES)}, or the same with .gz, got {path.name!r}."
        )
    return _stem_suffix(path)
