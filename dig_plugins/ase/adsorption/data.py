"""Relaxations and MD of adsorbates on many slabs as training systems: files read, images sorted by slab, misfits left out and counted."""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import ase.db
import ase.io
import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from dig_core.coordinates import Adsorbate
from dig_core.errors import IncompatibleError, UnsupportedError
from dig_core.system.descriptor import Descriptor
from dig_core.training.frames import frames_of
from dig_core.training.losses import Frames
from dig_core.types import Geometry

from ..convert import kT, read, to_geometry
from ..energy import ASEEnergy
from .anomaly import anomalies
from .describe import describe_adsorption
from .place import binding_index
from .role import Roles, roles

__all__ = ["AdsorptionData", "read_images", "systems_of"]

_LOG = logging.getLogger(__name__)
_OPENERS = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_SAME_CELL = 1e-3  # Angstrom


class AdsorptionData(NamedTuple):
    """``systems``: what :class:`dig_core.training.systems.Systems` and :func:`fit_systems` take, a descriptor and its frames each;
    ``images``: the reference structure of each; ``excluded``: label -> number of images left out."""

    systems: list[tuple[Descriptor, Frames]]
    images: list[Atoms]
    excluded: Counter[str]


def read_images(path: str | Path, index: str = ":") -> list[Atoms]:
    """The structures of a file, energies and forces included where it has them.

    ``path``: anything that ``ase.io`` reads (extended XYZ, .traj, ...; text formats also as .xz, .gz, .bz2), an ASE database (.db), or a
    fairchem database (.aselmdb; needs ``ase-db-backends``). ``index``: a slice as ASE writes it.

    Raises
    ------
    ImportError: the reader of .aselmdb is missing. UnsupportedError: an LMDB of pickles, which is not opened: unpickling runs code.
    IncompatibleError: no file, an index that is no slice, or a file that cannot be read.
    """
    path, chosen = Path(path), _slice(index)
    if path.suffix == ".lmdb":
        raise UnsupportedError(
            f"{path.name} looks like an LMDB of OC20, which holds pickled objects: reading it would run whatever code is inside. If you "
            "trust it, convert it where fairchem is installed (write the structures with ase.io.write to .extxyz or .traj), or get the "
            "dataset as .aselmdb."
        )
    if not path.exists():
        raise IncompatibleError(f"no file {path}: expected .extxyz, .traj, .db, .aselmdb or another format of ase.io.")
    if path.suffix == ".aselmdb":
        return _lmdb(path)[chosen]
    try:
        if path.suffix in _OPENERS:
            # Decompressed as a whole: readers seek back and forth, which compressed streams do slowly.
            with _OPENERS[path.suffix](path, "rt", encoding="utf-8") as stream:
                text = io.StringIO(stream.read())
            images = ase.io.read(text, index=":", format=Path(path.stem).suffix[1:])
        else:
            images = read(path)
    except ImportError:
        raise
    except Exception as error:  # every format's reader raises errors of its own
        raise IncompatibleError(f"{path} cannot be read by ASE ({type(error).__name__}: {error}): check its format and ending.") from error
    if not images:
        raise IncompatibleError(f"{path} holds no structure: check its format and ending.")
    return images[chosen]


def systems_of(
    images: Sequence[Atoms], adsorbate_indices=None, *, convention: str | None = None, temperature: float, yielding: bool = False,
    coordinates: Adsorbate | None = None, energy=None, tolerance: float = 1.0,
) -> AdsorptionData:  # fmt: skip
    """Sort ``images`` (relaxations, MD, of any number of slabs and adsorbates) into systems with their training frames.

    Images of one system have the same slab atoms in the same order, cell and adsorbate, and slab atoms within ``tolerance``. The reference
    structure of a system, which gives the slab its place and the adsorbate its shape, is the lowest in energy, or the last
    without energies; its slab is that of a clean image, where a tag convention tells that there is one. Left out and counted: images
    with positions or numbers that are not finite (``not_finite``, ``calculator_failed``), with an anomaly of :func:`anomalies`
    against the first image, and with an adsorbate that is not the reference's rigid one (``adsorbate_deformed``).

    Parameters
    ----------
    adsorbate_indices, convention: as of :func:`roles`, the same for all images. FixAtoms (``move_mask`` of extended XYZ) is honoured.
    temperature: K; of the condition, and of the Boltzmann factor whose forces the frames carry.
    yielding: free slab atoms move; otherwise the slab stays as the reference has it.
    coordinates: of the model to be trained, the defaults of :class:`AdsorptionGraphormer` if None.
    energy: an ASE calculator that gives all forces, one call a frame; otherwise forces are those stored with the images, in
        systems where every frame has them. tolerance: Angstrom.

    Raises
    ------
    IncompatibleError: no images, no system left, wrong indices or tags, an unfit slab. UnsupportedError: see :func:`roles`.
    """
    if not len(images):
        raise IncompatibleError("expected at least one image, got none: check the file and the index.")
    excluded: Counter[str] = Counter()
    kt = kT(temperature)
    coordinates = Adsorbate() if coordinates is None else coordinates
    found: list[tuple[Descriptor, Frames]] = []
    references: list[Atoms] = []
    for group in _groups(images, adsorbate_indices, convention, tolerance, excluded):
        kept = group.usable(excluded)
        if not kept:
            continue
        reference, guest = group.reference(kept), group.roles.adsorbate
        anchor = int(guest[binding_index(reference.numbers[guest])])
        descriptor = describe_adsorption(reference, guest, temperature=temperature, anchor=anchor, yielding=yielding)
        kept = _fitting(kept, coordinates, descriptor, excluded)
        frames = _frames(kept, coordinates, descriptor, reference, kt, energy, temperature, excluded)
        if frames is not None:
            found.append((descriptor, frames))
            references.append(reference)
    told = ", ".join(f"{label} {count}" for label, count in sorted(excluded.items())) or "none"
    if not found:
        raise IncompatibleError(f"none of {len(images)} images can be used; left out: {told}.")
    _LOG.info("%d systems, %d frames; left out: %s", len(found), sum(len(frames) for _, frames in found), told)
    return AdsorptionData(found, references, excluded)


@dataclass
class _Group:
    """Images of one slab and adsorbate, and the clean slab if it is among them."""

    roles: Roles
    images: list[Atoms] = field(default_factory=list)
    clean: Atoms | None = None

    def usable(self, excluded: Counter[str]) -> list[Atoms]:
        """Images without an anomaly; labels of the others are counted."""
        guest = self.roles.adsorbate
        order = np.r_[np.setdiff1d(np.arange(len(self.images[0])), guest), guest]
        first = self.images[0][order]
        slab = first[: len(order) - len(guest)] if self.clean is None else self.clean
        kept = []
        for image in self.images:
            wrong = anomalies(first, image[order], slab)
            excluded.update(wrong[:1])
            kept += [] if wrong else [image]
        return kept

    def reference(self, kept: list[Atoms]) -> Atoms:
        """See :func:`systems_of`."""
        energies = [_stored(image, "energy") for image in kept]
        best = len(kept) - 1 if any(e is None for e in energies) else int(np.argmin(np.array(energies, dtype=float)))
        chosen = kept[best].copy()
        if self.clean is not None:
            chosen.positions[np.setdiff1d(np.arange(len(chosen)), self.roles.adsorbate)] = self.clean.positions
        return chosen


def _groups(images: Sequence[Atoms], indices, convention: str | None, tolerance: float, excluded: Counter[str]) -> list[_Group]:
    """Finite images by system, in the order of their first ones."""
    groups: dict[tuple, list[_Group]] = {}
    clean: list[Atoms] = []
    for image in images:
        numbers = [_stored(image, "energy"), _stored(image, "forces")]
        if not all(np.isfinite(x).all() for x in (image.positions, image.cell.array, *numbers) if x is not None):
            excluded["not_finite"] += 1
        elif convention is not None and _bare(image, convention):
            clean.append(image)
        else:
            found = roles(image, indices, convention=convention)
            if not len(found.adsorbate):
                raise IncompatibleError("expected to know the adsorbate: pass adsorbate_indices, or convention='ocp' or 'ase'.")
            key = (image.numbers.tobytes(), found.adsorbate.tobytes(), found.frozen.tobytes(), image.pbc.tobytes())
            _sort(groups.setdefault(key, []), image, found, tolerance)
    made = [group for alike in groups.values() for group in alike]
    for group in made:
        still = np.setdiff1d(np.arange(len(group.images[0])), group.roles.adsorbate)
        for slab in clean:
            if group.clean is None and _alike(slab, group.images[0][still], tolerance):
                group.clean = slab
    return made


def _bare(image: Atoms, convention: str) -> bool:
    """Whether an image has no adsorbate, where tags tell: 2 in "ocp", 0 in "ase"."""
    return not (image.get_tags() == {"ocp": 2, "ase": 0}.get(convention, -1)).any() and bool(image.get_tags().any())


def _sort(alike: list[_Group], image: Atoms, found: Roles, tolerance: float) -> None:
    still = np.setdiff1d(np.arange(len(image)), found.adsorbate)
    for group in alike:
        if _alike(image[still], group.images[0][still], tolerance):
            group.images.append(image)
            return
    alike.append(_Group(found, [image]))


def _alike(one: Atoms, other: Atoms, tolerance: float) -> bool:
    if len(one) != len(other) or (one.numbers != other.numbers).any() or np.abs(one.cell.array - other.cell.array).max() > _SAME_CELL:
        return False
    return bool(np.linalg.norm(one.positions - other.positions, axis=1).max() < tolerance)


def _fitting(images: list[Atoms], coordinates: Adsorbate, descriptor: Descriptor, excluded: Counter[str]) -> list[Atoms]:
    """Images that the coordinates can describe."""
    kept = []
    for image in images:
        try:
            coordinates.encode(to_geometry(image), descriptor)
        except IncompatibleError:
            excluded["adsorbate_deformed"] += 1
        else:
            kept.append(image)
    return kept


def _frames(
    images: list[Atoms], coordinates: Adsorbate, descriptor: Descriptor, template: Atoms, kt: float, energy, temperature: float,
    excluded: Counter[str],
) -> Frames | None:  # fmt: skip
    """Frames with the forces of ``energy``, or of the images if all have them; None if none is left."""
    from dig_core.nn import AdsorptionGraphormer

    if not images:
        return None
    positions, forces = to_geometry(images).positions, [_stored(image, "forces") for image in images]
    if energy is not None:
        # Where the model has the structure: with a rigid slab and adsorbate this is not quite where the image has it.
        placed = coordinates.decode(coordinates.encode(Geometry(positions), descriptor)[0], descriptor)
        u, gradient = ASEEnergy(energy, template, temperature).energy_and_gradient(placed)
        good = torch.isfinite(u)
        excluded.update({"calculator_failed": int((~good).sum())} if not good.all() else {})
        if not good.any():
            return None
        positions, reduced = positions[good], -gradient[good]
    elif all(force is not None for force in forces):
        reduced = torch.as_tensor(np.array(forces, dtype=np.float64)) / kt
    else:
        return frames_of(coordinates, descriptor, Geometry(positions))
    # A network of any size says along which spaces the forces are taken.
    process = AdsorptionGraphormer(8, 1, 1, 1, 4, channels=2, coordinates=coordinates.config).process(descriptor)
    return frames_of(coordinates, descriptor, Geometry(positions), _Known(reduced), process=process, batch=len(positions))


class _Known:
    """An energy known at F structures by its reduced forces (F, N, 3) there, in their order: linear, with those forces."""

    def __init__(self, forces: Tensor):
        self.forces = forces

    def __call__(self, geometry: Geometry) -> Tensor:
        return -(self.forces * geometry.positions).sum((1, 2))


def _stored(image: Atoms, name: str):
    """A result kept with an image, or None; nor is one used that a calculator has kept from before the atoms moved."""
    return None if image.calc is None or image.calc.check_state(image) else image.calc.results.get(name)


def _slice(index: str) -> slice | None:
    parts = str(index).split(":")
    try:
        numbers = [int(part) if part else None for part in parts]
    except ValueError:
        numbers = []
    if not 1 < len(numbers) < 4:
        raise IncompatibleError(f"expected index as a slice such as ':', '::10' or '-5:', got {index!r}.")
    return slice(*numbers)


def _lmdb(path: Path) -> list[Atoms]:
    try:
        rows = ase.db.connect(path, type="aselmdb", readonly=True)
    except ModuleNotFoundError as error:
        raise ImportError(f"{path.name} is an LMDB database of ASE: pip install ase-db-backends to read it.") from error
    images = []
    for row in rows.select():
        image = row.toatoms()
        image.info.update(row.key_value_pairs)
        images.append(image)
    return images
