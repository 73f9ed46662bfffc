"""The examples as notebooks: `python docs/notebooks.py DIRECTORY`. Cells are the scripts' paragraphs; nothing is run."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import jupytext
from nbformat.v4 import new_code_cell, new_markdown_cell

FIRST = 'import sys\n\nsys.argv = ["notebook", "--fast"]  # smoke sizes; take "--fast" out for the whole'
EXAMPLES = Path(__file__).parents[1] / "examples"


def convert(script: Path, directory: Path) -> Path:
    """Write the notebook of one example, which reads its options from a first cell as from a command line."""
    notebook = jupytext.read(script)
    told = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or script.stem
    notebook.cells[:1] = [new_markdown_cell(told), new_code_cell(FIRST)]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{script.stem}.ipynb"
    jupytext.write(notebook, path)
    return path


if __name__ == "__main__":
    for script in sorted(EXAMPLES.glob("*.py")):
        convert(script, Path(sys.argv[1]))
