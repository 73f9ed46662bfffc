"""Ensembles as files that any ASE tool opens: one image a sample, everything else in ``info["dig_*"]``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.db import connect
from ase.io import read, write

from dig_core.errors import IncompatibleError

from .ensemble import AdsorptionEnsemble

__all__ = ["from_images", "read_ensemble", "to_images", "write_ensemble"]

_VECTORS = ("log_q", "log_weight", "energies")
_SCALARS = ("temperature", "correction", "energy_name", "source", "n_calls", "wall_s", "cpu_s")
_KEPT = (str, int, float, bool, np.ndarray, np.generic)
_SUFFIXES = (".extxyz", ".traj", ".db")


def to_images(ensemble: AdsorptionEnsemble) -> list[Atoms]:
    """One Atoms a sample. The first also holds the template's positions; energies are never under ASE's own keys."""
    images = []
    for i, positions in enumerate(ensemble.positions):
        atoms = ensemble.template.copy()
        atoms.positions = positions
        # ase.build leaves a dictionary of site names in info, which extxyz and db cannot hold.
        atoms.info = {k: v for k, v in atoms.info.items() if not k.startswith("dig_") and isinstance(v, _KEPT)}
        for name in _VECTORS:
            values = getattr(ensemble, name)
            if values is not None:
                atoms.info[f"dig_{name}"] = float(values[i])
        atoms.info |= {
            "dig_sample": i,
            "dig_valid": bool(ensemble.valid[i]),
            "dig_anomalies": " ".join(ensemble.anomalies[i]) or "none",
        }
        atoms.info |= {f"dig_{name}": _told(getattr(ensemble, name)) for name in _SCALARS}
        atoms.info["dig_adsorbate"] = " ".join(str(int(k)) for k in ensemble.adsorbate) + " "
        images.append(atoms)
    images[0].info["dig_template"] = ensemble.template.positions.ravel().copy()
    return images


def from_images(images: list[Atoms]) -> AdsorptionEnsemble:
    """The ensemble that :func:`to_images` took apart; its template is the first image if the first one of the file is missing.

    Raises IncompatibleError for structures that are not from an ensemble.
    """
    if not images or "dig_adsorbate" not in images[0].info:
        raise IncompatibleError(
            "these structures carry no dig_* numbers: read a file that AdsorptionEnsemble.write made."
        )
    infos = [atoms.info for atoms in images]
    template = images[0].copy()
    template.info = {key: value for key, value in template.info.items() if not key.startswith("dig_")}
    if "dig_template" in infos[0]:
        template.positions = np.asarray(infos[0]["dig_template"], dtype=float).reshape(-1, 3)
    vectors = {
        name: np.array([float(i[f"dig_{name}"]) for i in infos]) if f"dig_{name}" in infos[0] else None
        for name in _VECTORS
    }
    scalars = {name: infos[0][f"dig_{name}"] for name in _SCALARS}
    scalars |= {name: None if scalars[name] == "none" else scalars[name] for name in ("correction",)}
    scalars |= {name: "" if scalars[name] == "none" else str(scalars[name]) for name in ("energy_name", "source")}
    words = [str(i["dig_anomalies"]).split() for i in infos]
    return AdsorptionEnsemble(
        template, np.array([atoms.positions for atoms in images]), tuple(int(k) for k in str(infos[0]["dig_adsorbate"]).split()),
        valid=np.array([bool(i["dig_valid"]) for i in infos]),
        anomalies=tuple(() if w == ["none"] else tuple(w) for w in words), **vectors, **scalars,
    )  # fmt: skip


def write_ensemble(path: str | Path, ensemble: AdsorptionEnsemble) -> None:
    """See :meth:`AdsorptionEnsemble.write`. An existing database is replaced, as other files are. IncompatibleError: other names."""
    path = _known(path)
    images = to_images(ensemble)
    if path.suffix != ".db":
        write(path, images)
        return
    path.unlink(missing_ok=True)
    with connect(path) as database:
        for atoms in images:
            database.write(atoms, data={key: value for key, value in atoms.info.items() if key.startswith("dig_")})


def read_ensemble(path: str | Path) -> AdsorptionEnsemble:
    """See :meth:`AdsorptionEnsemble.read`."""
    path = _known(path)
    if path.suffix != ".db":
        return from_images(read(path, index=":"))
    images = []
    for row in connect(path).select(sort="id"):
        atoms = row.toatoms()
        atoms.info |= dict(row.data)
        images.append(atoms)
    return from_images(images)


def _known(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise IncompatibleError(f"expected a file name ending in {', '.join(_SUFFIXES)}, got {path.name!r}.")
    return path


def _told(value):
    """Words for what files cannot hold: None and empty text."""
    return "none" if value is None or value == "" else value
