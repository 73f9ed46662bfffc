"""Structures to turn and to leaf through: in a page without a network, in a notebook, or in py3Dmol. Knows no engine."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dig_core.errors import IncompatibleError
from dig_core.system.elements import covalent_radii

__all__ = ["SCRIPT", "STYLES", "Shot", "Scene", "bonds_of", "superposed"]

SCRIPT = Path(__file__).with_name("scene.js")
"""The viewer: one file, nothing else is loaded."""
STYLES = ("sticks", "balls", "trace")
_LONGER = 1.2  # than the sum of covalent radii: no bond


class Shot(NamedTuple):
    """``numbers`` (N,), ``positions`` (N, 3) Angstrom, ``bonds`` (M, 2) indices, ``cell`` (3, 3) Angstrom, rows are vectors, if any, whose
    corner is at ``origin`` (3,)."""

    numbers: np.ndarray
    positions: np.ndarray
    bonds: np.ndarray
    label: str = ""
    cell: np.ndarray | None = None
    origin: np.ndarray | None = None


@dataclass(frozen=True)
class Scene:
    """Frames to look at. ``style``: "sticks", "balls", or "trace", a line along the atoms, coloured from its beginning to its end.

    A notebook shows it as it is; :meth:`py3dmol` hands it to py3Dmol.
    """

    title: str
    frames: tuple[Shot, ...]
    caption: str = ""
    style: str = "sticks"

    @classmethod
    def of(
        cls, numbers, positions, *, title: str = "Structures", labels: Sequence[str] = (), cell=None, caption: str = "",
        style: str = "sticks",
    ) -> Scene:  # fmt: skip
        """Of one system: ``numbers`` (N,), ``positions`` (F, N, 3) Angstrom; bonds are those of the first structure, by distance.

        Raises IncompatibleError for other shapes, or a style that is none.
        """
        z, x = np.asarray(numbers), np.asarray(positions, dtype=np.float64)
        if x.ndim != 3 or x.shape[1:] != (len(z), 3) or not len(x):
            raise IncompatibleError(f"expected positions (F, {len(z)}, 3) of at least one structure, got {x.shape}.")
        if style not in STYLES:
            raise IncompatibleError(f"expected style to be one of {', '.join(STYLES)}, got {style!r}.")
        bonds = _line(len(z)) if style == "trace" else bonds_of(z, x[0])
        names = [*labels, *(f"structure {i + 1}" for i in range(len(labels), len(x)))]
        return cls(title, tuple(Shot(z, one, bonds, name, cell) for one, name in zip(x, names, strict=False)), caption, style)

    def data(self) -> str:
        """What the viewer reads, JSON: positions in hundredths of an Angstrom about the middle of all."""
        middle = np.concatenate([frame.positions for frame in self.frames]).mean(0)
        frames = [_packed(frame, middle) for frame in self.frames]
        # "</" would end the element that holds it.
        return json.dumps({"style": self.style, "frames": frames}, separators=(",", ":")).replace("</", "<\\/")

    def _repr_html_(self) -> str:
        """For notebooks: a frame of its own, so that scripts run and nothing else is touched."""
        from .page import standalone

        page = html.escape(standalone(self))
        return f'<iframe srcdoc="{page}" style="width:100%;height:30rem;border:0" title="{html.escape(self.title)}"></iframe>'

    def py3dmol(self, width: int = 640, height: int = 480) -> Any:
        """A ``py3Dmol.view`` of all frames, in turn. It loads 3Dmol.js from the network. ImportError, naming the extra, without py3Dmol."""
        try:
            import py3Dmol
        except ImportError as error:
            raise ImportError("this view needs py3Dmol: pip install 'dig-plugins[viz]'") from error
        view = py3Dmol.view(width=width, height=height)
        view.addModelsAsFrames("".join(_xyz(frame) for frame in self.frames), "xyz")
        small = {"sphere": {"scale": 0.25}, "stick": {"radius": 0.12}}
        view.setStyle({}, {"sphere": {"scale": 0.7}} if self.style == "balls" else small)
        view.zoomTo()
        if len(self.frames) > 1:
            view.animate({"loop": "forward", "interval": 500})
        return view


def bonds_of(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(M, 2) pairs of atoms nearer than 1.2 times the sum of their covalent radii."""
    radii = covalent_radii(torch.as_tensor(np.asarray(numbers), dtype=torch.long)).numpy()
    apart = np.linalg.norm(positions[:, None] - positions, axis=-1)
    return np.argwhere(np.triu(apart < _LONGER * (radii[:, None] + radii), 1))


def superposed(positions: np.ndarray, on: np.ndarray | None = None) -> np.ndarray:
    """(F, N, 3) moved onto the first, centred, by all atoms or by the indices ``on`` (Kabsch)."""
    chosen = slice(None) if on is None else on
    placed = positions - positions[:, chosen].mean(1, keepdims=True)
    u, _, vt = np.linalg.svd(np.einsum("fni,nj->fij", placed[:, chosen], placed[0, chosen]))
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    return placed @ (u @ vt)


def _line(n: int) -> np.ndarray:
    return np.stack([np.arange(n - 1), np.arange(1, n)], 1)


def _packed(frame: Shot, middle: np.ndarray) -> dict:
    def whole(x: np.ndarray) -> list[int]:
        return np.rint(100 * x).astype(int).ravel().tolist()

    found = {"z": np.asarray(frame.numbers).tolist(), "x": whole(frame.positions - middle), "b": frame.bonds.ravel().tolist()}
    if frame.cell is not None:
        found |= {"cell": whole(frame.cell), "origin": whole((0 if frame.origin is None else frame.origin) - middle)}
    return found | {"label": frame.label}


def _xyz(frame: Shot) -> str:
    lines = [f"{_SYMBOLS[int(z)]} {x:.3f} {y:.3f} {w:.3f}" for z, (x, y, w) in zip(frame.numbers, frame.positions, strict=True)]
    return "\n".join([str(len(lines)), frame.label.replace("\n", " "), *lines]) + "\n"


_SYMBOLS = (
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag "
    "Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn"
).split()
