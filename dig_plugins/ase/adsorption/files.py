"""Ensembles as files that any ASE tool opens: one image a sample, everything else in ``info["dig_*"]``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from dig_core.errors import IncompatibleError
from dig_core.files import understood

from ..convert import read, write
from .ensemble import AdsorptionEnsemble

__all__ = ["from_images", "read_ensemble", "to_images", "write_ensemble"]

_VECTORS = ("log_q", "log_weight")
_SCALARS = ("temperature", "correction", "energy_name", "source", "n_calls", "wall_s", "cpu_s")
_KEPT = (str, int, float, bool, np.ndarray, np.generic)
_SUFFIXES = (".extxyz", ".traj", ".db")


def to_images(ensemble: AdsorptionEnsemble) -> list[Atoms]:
    """One Atoms a sample, energies where they are known as ASE's own; the first also holds the template's positions."""
    shared = {f"dig_{name}": _told(getattr(ensemble, name)) for name in _SCALARS}
    shared["dig_adsorbate"] = _text(ensemble.adsorbate)
    # ase.build leaves a dictionary of site names in info, which extxyz and db cannot hold.
    kept = {k: v for k, v in ensemble.template.info.items() if not k.startswith("dig_") and isinstance(v, _KEPT)}
    images = []
    for i, positions in enumerate(ensemble.positions):
        atoms = ensemble.template.copy()
        atoms.positions = positions
        atoms.info = kept | shared | {"dig_index": i, "dig_valid": int(ensemble.valid[i])}
        atoms.info["dig_anomalies"] = " ".join(ensemble.anomalies[i]) or "none"
        atoms.info |= {f"dig_{k}": float(getattr(ensemble, k)[i]) for k in _VECTORS if getattr(ensemble, k) is not None}
        if ensemble.energies is not None and np.isfinite(ensemble.energies[i]):
            atoms.calc = SinglePointCalculator(atoms, energy=float(ensemble.energies[i]))
        images.append(atoms)
    images[0].info["dig_template"] = _text(ensemble.template.positions.ravel())
    return images


def from_images(images: list[Atoms]) -> AdsorptionEnsemble:
    """The ensemble that :func:`to_images` took apart; without its first image, the first one left is the template.

    Raises IncompatibleError for structures that are not from an ensemble.
    """
    if not images or "dig_adsorbate" not in images[0].info:
        raise IncompatibleError(
            "these structures carry no dig_adsorbate: read a file that AdsorptionEnsemble.write made."
        )
    infos = [atoms.info for atoms in images]
    template = images[0].copy()
    template.info = {key: value for key, value in template.info.items() if not key.startswith("dig_")}
    if "dig_template" in infos[0]:
        template.positions = _numbers(infos[0]["dig_template"]).reshape(-1, 3)
    fields = {name: infos[0][f"dig_{name}"] for name in _SCALARS}
    fields["correction"] = None if fields["correction"] == "none" else fields["correction"]
    fields |= {name: "" if fields[name] == "none" else str(fields[name]) for name in ("energy_name", "source")}
    fields |= {k: np.array([float(info[f"dig_{k}"]) for info in infos]) for k in _VECTORS if f"dig_{k}" in infos[0]}
    energies = [np.nan if atoms.calc is None else atoms.calc.results.get("energy", np.nan) for atoms in images]
    labels = [str(info["dig_anomalies"]).split() for info in infos]
    return AdsorptionEnsemble(
        template,
        np.array([atoms.positions for atoms in images]),
        tuple(int(k) for k in _numbers(infos[0]["dig_adsorbate"])),
        energies=np.array(energies) if np.isfinite(energies).any() else None,
        valid=np.array([bool(info["dig_valid"]) for info in infos]),
        anomalies=tuple(() if words == ["none"] else tuple(words) for words in labels),
        **fields,
    )


def write_ensemble(path: str | Path, ensemble: AdsorptionEnsemble) -> None:
    """See :meth:`AdsorptionEnsemble.write`; an existing file is replaced. Raises IncompatibleError for other names."""
    write(_known(path), to_images(ensemble))


def read_ensemble(path: str | Path) -> AdsorptionEnsemble:
    """See :meth:`AdsorptionEnsemble.read`."""
    with understood(path, "holds no ensemble of adsorbates", "read what AdsorptionEnsemble.write made"):
        return from_images(read(_known(path)))


def _known(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise IncompatibleError(f"expected a file name ending in {', '.join(_SUFFIXES)}, got {path.name!r}.")
    return path


def _told(value):
    """A word for what files cannot hold: None and empty text."""
    return "none" if value is None or value == "" else value


def _text(values) -> str:
    """Numbers as text: databases keep no arrays, and refuse text that is a number, hence the word in front."""
    return " ".join(["values", *(repr(float(v)) for v in values)])


def _numbers(text: str) -> np.ndarray:
    return np.array([float(word) for word in str(text).split()[1:]])
