"""Sphinx: pages in Markdown (MyST), the API from the docstrings. Offline; engines that are missing are mocked."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import dig_core  # noqa: E402

project = "dig-plugins"
author = copyright = "dig-plugins developers"
version = release = dig_core.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"dig-plugins {version}"
html_show_copyright = html_copy_source = False

myst_heading_anchors = 3
# A page that takes in README.md or RESULTS.md begins with their headings.
suppress_warnings = ["myst.header"]

ENGINES = ["ase", "chgnet", "matplotlib", "mdtraj", "openmm", "openmmml", "openmmtools", "pdbfixer", "py3Dmol", "pymatgen", "rdkit", "scipy"]
autodoc_mock_imports = [name for name in ENGINES if find_spec(name) is None]
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100

PAGES = {"benchmarks/RESULTS.md": "results.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
ITEM = re.compile(r"\*{0,2}[A-Za-z_]\w*(, \*{0,2}[A-Za-z_]\w*)*: ")
SHAPE = re.compile(r"(``.*?``)|([*|])", re.DOTALL)


def plain(text: str) -> str:
    """``text`` with its stars and bars escaped, (B, *shape) and p(x | y), which are no mark-up; literals stay."""
    return SHAPE.sub(lambda found: found[1] or f"\\{found[2]}", text)


def sections(app, what, name, obj, options, lines: list[str]) -> None:
    """Underlined sections of a docstring become rubrics, their lines ``name: what it is`` items of a list."""
    found: list[str] = []
    section = item = False
    text = "\n".join(lines).split("::\n\n")
    # What follows two colons is code up to the next line that is not indented.
    for part, block in enumerate(text):
        code, rest = re.match(r"((?:    .*\n|\n)*)(.*)", block, re.DOTALL).groups() if part else ("", block)
        text[part] = code + plain(rest)
    lines[:] = "::\n\n".join(text).split("\n")
    for number, line in enumerate(lines):
        below = lines[number + 1] if number + 1 < len(lines) else ""
        if re.fullmatch(r"-{3,}", below) and line.strip():
            found += ["", f".. rubric:: {line.strip()}", ""]
            section, item = True, False
        elif re.fullmatch(r"-{3,}", line):
            found.append("")
        elif section and ITEM.match(line):
            given, told = line.split(": ", 1)
            item = True
            found.append(f"* ``{given}``: {told}")
        else:
            found.append(f"  {line.strip()}" if item and line.strip() else line)
    lines[:] = found


def fields(app, what, name, obj, skip, options) -> bool | None:
    """Fields of named tuples are told of in the class's docstring."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def local(app, page: str, source: list[str]) -> None:
    """Links that serve readers of the repository lead to the pages that are made of those files."""
    for file, here in PAGES.items():
        source[0] = re.sub(rf"\]\((\.\./)+{re.escape(file)}", f"](/{here}", source[0])


def setup(app) -> None:
    app.connect("autodoc-process-docstring", sections)
    app.connect("autodoc-skip-member", fields)
    app.connect("source-read", local)
