"""The documentation: its code runs, its commands parse, what it names and quotes exists, and the site builds without a warning."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?:<!-- (not run|slow): [^>]+? -->\n)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"`(dig_(?:core|plugins)(?:\.\w+)+)")
ENGINES = {"dig_plugins.openmm": "openmm", "dig_plugins.ase": "ase", "dig_plugins.pymatgen": "pymatgen", "dig_plugins.mdtraj": "mdtraj",
           "dig_plugins.rdkit": "rdkit"}  # fmt: skip

GIVEN = {
    "README.md": """
from ase.calculators.emt import EMT
from dig_plugins.openmm import model_system
simulation, calculator = model_system("alanine-dipeptide").simulation(seed=1), EMT()
""",
    "docs/adsorption.md": """
from ase.calculators.emt import EMT
from matplotlib.figure import Figure
axes, calculator = Figure().add_subplot(), EMT()
""",
    "docs/materials.md": """
import gzip
from ase.build import bulk
from ase.io import write
with gzip.open("data.extxyz.gz", "wt") as stream:
    write(stream, [bulk("C"), bulk("C", cubic=True)], format="extxyz")
""",
}
"""Page -> code for what it takes for granted: the reader's own objects and files."""


class Block(NamedTuple):
    """Code of a page, the line it begins at, and its marker: "" runs, "slow" runs with ``-m slow``, "not run" is only looked at."""

    code: str
    line: int
    marker: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(found[2], text.count("\n", 0, found.start(2)) + 1, found[1] or "") for found in FENCE.finditer(text)]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


WITH_CODE = [page for page in PAGES if blocks(page)]


def tree_of(page: Path, block: Block) -> ast.Module:
    """The block with the page's own line numbers, so that tracebacks show the page."""
    return ast.increment_lineno(ast.parse(block.code, str(page)), block.line - 1)


def engines(page: Path) -> set[str]:
    """The engines that a page's code asks for."""
    code = "".join(block.code for block in blocks(page)) + GIVEN.get(name_of(page), "")
    found = {engine for module, engine in ENGINES.items() if module in code}
    return found | {"ase"} if re.search(r"^from ase", code, re.MULTILINE) else found


def run(page: Path, markers: set[str]) -> None:
    """Run a page's blocks in order, in one namespace."""
    for engine in engines(page):
        pytest.importorskip(engine)
    space: dict = {"__name__": "__main__"}
    exec(GIVEN.get(name_of(page), ""), space)
    for block in blocks(page):
        if block.marker in markers:
            exec(compile(tree_of(page, block), str(page), "exec"), space)


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page, {""})


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in WITH_CODE if any(b.marker == "slow" for b in blocks(page))], ids=name_of)
def test_all_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page, {"", "slow"})


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_defines_its_names(page):
    """Slow blocks too; what is not run may speak of the reader's own objects."""
    pytest.importorskip("ruff")
    code = "\n".join([GIVEN.get(name_of(page), ""), *(block.code for block in blocks(page) if block.marker != "not run")])
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--quiet", "--select", "F821", "--output-format", "concise", "-"]
    done = subprocess.run(command, input=code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def resolve(name: str) -> object:
    """What a dotted name stands for: the longest module in it, then attributes. Skips where an engine is missing."""
    parts = name.split(".")
    found, depth = None, 0
    for depth in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:depth]))
            break
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("dig_"):
                pytest.skip(f"{name} needs {error.name}")
    for part in parts[depth:]:
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_that_is_not_run_names_what_exists(page):
    """Its syntax, and what it imports from our packages."""
    for block in blocks(page):
        for node in ast.walk(tree_of(page, block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dig_"):
                for alias in node.names:
                    resolve(f"{node.module}.{alias.name}")
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("dig_"):
                        resolve(alias.name)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_exist(page):
    """Every dotted name of ours in the text, roles included."""
    for name in sorted(set(NAME.findall(page.read_text(encoding="utf-8")))):
        resolve(name)


def test_every_block_is_run_or_says_why_not():
    """No fence with another spelling hides code, and markers stand right before the code."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(blocks(page)) == len(re.findall(r"^[ \t]*(?:```|~~~)[ \t]*(?:python|py)\b", text, re.MULTILINE)), name_of(page)
        assert len(re.findall(r"^<!-- (?:not run|slow)", text, re.MULTILINE)) == sum(b.marker != "" for b in blocks(page)), name_of(page)


def test_quoted_messages_exist():
    """What troubleshooting quotes is what the code says."""
    code = "".join(path.read_text(encoding="utf-8") for package in ("dig_core", "dig_plugins") for path in (ROOT / package).rglob("*.py"))
    said = re.sub(r"\"\s*\n\s*f?\"", "", code)  # strings that stand one below the other are one message
    rows = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").splitlines()
    quoted = [text for row in rows if row.startswith('| "') for text in re.findall(r'"([^"]+)"', row.split("|")[1])]
    assert len(quoted) > 20
    assert not [text for text in quoted if text not in said]


def commands() -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        for fence in re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for line in fence.splitlines():
                if line.startswith("dig-plugins "):
                    found.append((name_of(page), line.partition(" #")[0].split()[1:]))
    return found


@pytest.mark.parametrize(("page", "arguments"), commands(), ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_commands_parse(page, arguments):
    """Verbs, options and their types are those of the command line; nothing is carried out."""
    from typer.main import get_command

    from dig_plugins.cli import app

    command = get_command(app)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        assert name in command.commands, f"no command {name!r} among {sorted(command.commands)}"
        command = command.commands[name]
    command.make_context(name, arguments)


def public() -> list[str]:
    """Every name in ``__all__`` of our packages, as package.name; verbs of the command line are told of by their help."""
    found = []
    for root in ("dig_core", "dig_plugins"):
        package = importlib.import_module(root)
        names = [root, *(m.name for m in pkgutil.walk_packages(package.__path__, root + ".", onerror=lambda _: None) if m.ispkg)]
        for name in names:
            if ".recipes" not in name and name != "dig_plugins.cli":
                found += [f"{name}.{part}" for part in getattr(importlib.import_module(name), "__all__", ())]
    return found


def test_site_builds_and_lists_what_is_public(tmp_path):
    """Warnings are errors; under any of the names that it has, every public class and function is in the reference."""
    for needed in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(needed)
    from sphinx.util.inventory import InventoryFile

    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = {name for kind in InventoryFile.loads((tmp_path / "objects.inv").read_bytes(), uri="").data.values() for name in kind}
    things = {name: thing for name in public() if inspect.isclass(thing := resolve(name)) or inspect.isroutine(thing)}
    told = {id(thing) for name, thing in things.items() if {name, f"{thing.__module__}.{thing.__qualname__}"} & listed}
    assert not [name for name, thing in things.items() if id(thing) not in told]


def test_examples_are_notebooks(tmp_path, monkeypatch):
    """Each cell is whole code by itself; one notebook is run, cell by cell."""
    pytest.importorskip("jupytext")
    pytest.importorskip("openmm")
    done = subprocess.run([sys.executable, str(ROOT / "docs/notebooks.py"), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    notebooks = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*.ipynb")}
    assert set(notebooks) == {path.stem for path in (ROOT / "examples").glob("*.py")}
    code = {name: ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"] for name, book in notebooks.items()}
    assert all(ast.parse(cell) for cells in code.values() for cell in cells)
    monkeypatch.setattr(sys, "argv", ["kernel", "-f", "connection.json"])
    space: dict = {"__name__": "__main__", "__doc__": "notebook"}
    for cell in code["own_chain"]:
        exec(cell, space)
    assert space["accepted"] > 0
