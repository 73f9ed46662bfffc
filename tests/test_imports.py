"""The import rules of the house: no engine in the core, no sibling in a plugin, downwards only, cheap and silent."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

CORE_ORDER = """
    errors plugins devices types random files progress tensors system coordinates diffusion nn score sampling energy gradients parallel
    montecarlo training dig checkpoint testing
""".split()
"""A part imports only itself and parts that stand before it."""

FACADE = "dig"
"""Its methods may import what stands after it, inside functions: ``DiG.save`` calls the checkpoint's writer."""

FOUNDATION = {"dig_core.diffusion.rotations", "dig_core.diffusion.spaces"}
"""Modules that stand on types, errors and random alone, so that every part may import them."""

CORE_NEEDS = {"torch", "numpy", "safetensors", "tqdm"}
CORE_OPTIONAL = {"pymbar"}
"""Imported inside a function only, with an error that says what to install."""

ENGINES = {
    "openmm": {"openmm", "openmmtools", "openmmml", "pdbfixer", "mdtraj"},  # the last one writes HDF5
    "ase": {"ase", "scipy", "matplotlib", "chgnet", "sevenn"},  # scipy, matplotlib: with ase; the others are calculators by name
    "pymatgen": {"pymatgen", "scipy", "matplotlib", "ase"},  # scipy and matplotlib come with pymatgen; ase writes files and relaxes
    "mdtraj": {"mdtraj"},
    "rdkit": {"rdkit"},
    "openff": {"openff", "openmm", "rdkit"},  # its toolkit reads molecules of the one and writes Systems of the other
    "models": {"filelock", "platformdirs"},  # of the cache
    "panels": {"matplotlib"},
}
"""Sub-package of dig_plugins -> third-party packages it may import besides what dig_core needs."""

SHARED = {"claim", "lazy", "models", "report", "panels", "page", "progress", "record", "scene", "weighing", "xyz"}
"""Parts of dig_plugins that know no engine: every sub-package may import them."""

ABOVE = {"cli", "tasks"}
"""Sub-packages that may use every other, inside functions."""

HEAVY = set.union(*ENGINES.values()) | {"matplotlib", "scipy", "pandas", "pymbar", "typer", "platformdirs"}


class Import(NamedTuple):
    """One imported module: where, its full dotted name, and how it is imported."""

    place: str
    module: str
    lazy: bool
    typing_only: bool


def imports_of(path: Path) -> Iterator[Import]:
    """Every import statement of a file, relative ones resolved; ``from a import b`` counts as ``a.b``."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]

    def walk(node: ast.AST, lazy: bool, typing_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            where = f"{path.relative_to(ROOT).as_posix()}:{getattr(child, 'lineno', 0)}"
            if isinstance(child, ast.Import):
                yield from (Import(where, alias.name, lazy, typing_only) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                parent = package[: len(package) - child.level + 1] if child.level else ()
                base = ".".join((*parent, *filter(None, [child.module])))
                yield from (Import(where, f"{base}.{alias.name}", lazy, typing_only) for alias in child.names)
            else:
                inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                typed = typing_only or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
                yield from walk(child, inside, typed)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False, False)


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def third_party(found: Import) -> str | None:
    top = found.module.split(".")[0]
    return None if top in sys.stdlib_module_names or top in {"dig_core", "dig_plugins"} else top


def core_part(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "dig_core" and len(parts) > 1 and parts[1] in CORE_ORDER else None


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "dig_core").parts[0].removesuffix(".py")


def test_core_needs_only_its_four_packages():
    wrong = [
        f"{found.place} imports {found.module}"
        for path in files("dig_core")
        for found in imports_of(path)
        if (top := third_party(found)) and top not in CORE_NEEDS and not (top in CORE_OPTIONAL and found.lazy)
    ]
    assert not wrong, "\n".join(wrong)


def test_core_does_not_know_its_plugins():
    wrong = [f.place for path in files("dig_core") for f in imports_of(path) if f.module.split(".")[0] == "dig_plugins"]
    assert not wrong, wrong


def test_every_part_of_the_core_has_its_place():
    parts = {part_of(path) for path in files("dig_core")}
    assert parts - {"__init__"} <= set(CORE_ORDER), "add the new part to CORE_ORDER, where the architecture lists it"


def test_core_imports_run_downwards():
    """Imports for type checkers alone are exempt, as are those of the package's own ``__init__``."""
    wrong = []
    for path in files("dig_core"):
        part = part_of(path)
        if part == "__init__":
            continue
        if ".".join(path.relative_to(ROOT).with_suffix("").parts) in FOUNDATION:
            part = "random"
        for found in imports_of(path):
            target = core_part(found.module)
            if target is None or found.typing_only or FOUNDATION & {found.module, found.module.rpartition(".")[0]}:
                continue
            if CORE_ORDER.index(target) > CORE_ORDER.index(part) and not (part == FACADE and found.lazy):
                wrong.append(f"{found.place}: {part} imports {target}, which comes after it")
    assert not wrong, "\n".join(wrong)


def sub_packages() -> list[str]:
    return sorted(p.name for p in (ROOT / "dig_plugins").iterdir() if p.name not in ABOVE and p.is_dir() and any(p.rglob("*.py")))


@pytest.mark.parametrize("name", sub_packages())
def test_plugin_imports_its_own_engine_and_no_sibling(name: str):
    assert name in ENGINES, f"add dig_plugins.{name} and what it may import to ENGINES"
    wrong = []
    for path in files(f"dig_plugins/{name}"):
        for found in imports_of(path):
            top, parts = third_party(found), found.module.split(".")
            if top and top not in CORE_NEEDS | ENGINES[name]:
                wrong.append(f"{found.place} imports {found.module}")
            if parts[0] == "dig_plugins" and len(parts) > 1 and parts[1] not in SHARED | {name}:
                wrong.append(f"{found.place} imports {found.module}: siblings and the command line are off limits")
    assert not wrong, "\n".join(wrong)


def test_modules_above_the_plugins_load_no_engine():
    """cli, tasks and report may use every sub-package, inside functions; at import they load no engine."""
    wrong = []
    for path in [*(ROOT / "dig_plugins").glob("*.py"), *(path for name in ABOVE for path in files(f"dig_plugins/{name}"))]:
        for found in imports_of(path):
            top, parts = third_party(found), found.module.split(".")
            engine = parts[0] == "dig_plugins" and len(parts) > 1 and parts[1] in set(ENGINES) - SHARED
            if not found.lazy and not found.typing_only and (engine or (top and top not in CORE_NEEDS | {"typer", "filelock"})):
                wrong.append(f"{found.place} imports {found.module} when it is imported")
    assert not wrong, "\n".join(wrong)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_no_engine_and_is_silent():
    code = (
        "import sys, torch; before = set(sys.modules); import dig_core, dig_plugins; "
        f"print(sorted((set(sys.modules) - before) & {HEAVY!r}))"
    )
    assert run_python(code).strip() == "[]"


def test_import_is_cheap():
    """Processor time beyond torch's own is below 0.3 s, in one of three tries."""
    code = "import time, torch, numpy; t = time.process_time(); import dig_core; print(time.process_time() - t)"
    assert any(float(run_python(code)) < 0.3 for _ in range(3))
