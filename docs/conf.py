"""Sphinx: pages in Markdown (MyST), the API from the docstrings. Offline; engines that are missing are mocked."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import dig_core  # noqa: E402

project = "dig-plugins"
author = copyright = "dig-plugins developers"
version = release = dig_core.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"dig-plugins {version}"
html_show_copyright = html_copy_source = False

myst_heading_anchors = 3

ENGINES = [
    "ase", "chgnet", "filelock", "matplotlib", "mdtraj", "openff", "openmm", "openmmml", "openmmtools", "pdbfixer", "py3Dmol", "pymatgen",
    "rdkit", "scipy",
]  # fmt: skip
autodoc_mock_imports = [name for name in ENGINES if find_spec(name) is None]
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100

PAGES = {"benchmarks/RESULTS.md": "results.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
OF_THE_CORE = {"Fitted"}
"""What plugins hand on, told of where it is made."""
ITEM = re.compile(r"\*{0,2}[A-Za-z_]\w*(, \*{0,2}[A-Za-z_]\w*)*: ")
SHAPE = re.compile(r"(``.*?``)|([*|])", re.DOTALL)


def plain(text: str) -> str:
    """``text`` with stars and bars escaped, which in (B, *shape) and p(x | y) are no mark-up; literals and code stay."""
    parts = text.split("::\n\n")
    for number, part in enumerate(parts):
        # What follows two colons is code, up to the next line that is not indented.
        code = re.match(r"(?: {4}.*\n|\n)*", part)[0] if number else ""
        parts[number] = code + SHAPE.sub(lambda found: found[1] or f"\\{found[2]}", part[len(code) :])
    return "::\n\n".join(parts)


def sections(app, what, name, obj, options, lines: list[str]) -> None:
    """Underlined sections of a docstring become rubrics, their lines ``name: what it is`` items of a list."""
    if lines[:1] == ["Call self as a function."]:  # what Python says of a contract's __call__
        lines.clear()
    found: list[str] = []
    section = item = False
    given = [*plain("\n".join(lines)).split("\n"), ""]
    for line, below in zip(given, given[1:], strict=False):
        if re.fullmatch("-{3,}", below):
            found += ["", f".. rubric:: {line.strip()}", ""]
            section, item = True, False
        elif re.fullmatch("-{3,}", line):
            found.append("")
        elif section and ITEM.match(line):
            term, told = line.split(": ", 1)
            item = True
            found.append(f"* ``{term}``: {told}")
        else:
            item = item and bool(line.strip())
            found.append(f"  {line.strip()}" if item else line)
    lines[:] = found


def fields(app, what, name, obj, skip, options) -> bool | None:
    """Fields of named tuples are told of in the class's docstring."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def local(app, page: str, source: list[str]) -> None:
    """Links that serve readers of the repository lead to the pages that are made of those files."""
    for file, here in PAGES.items():
        source[0] = re.sub(rf"\]\((\.\./)+{re.escape(file)}", f"](/{here}", source[0])


def packages(app, page: str, source: list[str]) -> None:
    """The page of a plugin lists its packages, each with its public names, where it does not do so itself; what a package
    below has too is listed there."""
    folder = ROOT / "dig_plugins" / page.removeprefix("api/")
    if not (page.startswith("api/") and folder.is_dir()):
        return
    files = sorted(folder.rglob("__init__.py"), key=lambda file: file.parts[:-1])
    names = [".".join(file.parent.relative_to(ROOT).parts) for file in files]
    public = {name: set(import_module(name).__all__) for name in names if "recipes" not in name}
    for name, here in public.items():
        if f"automodule:: {name}\n" in source[0]:
            continue
        below = set().union(*(there for other, there in public.items() if other.startswith(f"{name}.")))
        title = f"\n## {name}\n" if "." in name.removeprefix("dig_plugins.") else ""
        elsewhere = ", ".join(sorted(here & (below | OF_THE_CORE)))
        left_out = f"   :exclude-members: {elsewhere}\n" if elsewhere else ""
        source[0] += f"{title}\n```{{eval-rst}}\n.. automodule:: {name}\n{left_out}```\n"


def setup(app) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", sections)
    app.connect("autodoc-skip-member", fields)
    app.connect("source-read", local)
    app.connect("source-read", packages)
