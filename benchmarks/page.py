"""benchmarks/RESULTS.md from the JSON files of the scripts: every figure, its target, command, machine, date and comparison."""

from __future__ import annotations

import json
from pathlib import Path

from common import RESULTS, number

from dig_core.files import write_atomically

PAGE = RESULTS.parent / "RESULTS.md"

_HEAD = """# Measured figures

Every figure quoted anywhere in this repository stands here, with the script that made it. `make bench` measures
those of the first model and the overheads again and rewrites this page (`python benchmarks/run.py`); ablation, drug_like,
energy_only, enhanced, molecules and tempered take longer and are run one by one; `python benchmarks/page.py` rewrites the page
alone. Weights are raw: nothing is clipped, smoothed or left out. Times are processor time on one core. Ratios are of
numbers measured in one run, side by side. A figure that falls short of its target is listed as **short**.
"""


def write_page(results: Path = RESULTS, page: Path = PAGE) -> str:
    """Write and return the page."""
    records = [json.loads(file.read_text()) for file in sorted(results.glob("*.json"))]
    parts = [_HEAD, _summary(records), _machines(records), *(_section(record) for record in records)]
    text = "\n".join(parts)
    write_atomically(page, text.encode())
    return text


def markdown(header: list[str], rows: list[list]) -> str:
    """A table; floats in three significant figures."""
    lines = [header, ["---"] * len(header), *([_cell(x) for x in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cell(value) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no"}.get(value, "")
    return (number(value) if isinstance(value, float) else str(value)).replace("|", "\\|")


def _summary(records: list[dict]) -> str:
    rows = []
    for record in records:
        for figure in record["figures"]:
            sign = ("≥ " if figure["higher"] else "≤ ") if figure["floor"] is not None else ""
            unit = f" {figure['unit']}" if figure["unit"] else ""
            error = f" ± {number(figure['stderr'])}" if figure["stderr"] else ""
            value = figure["value"] if isinstance(figure["value"], str) else number(figure["value"])
            target = "" if figure["floor"] is None else f"{sign}{number(figure['floor'])}{unit}"
            aim = "" if figure["aim"] is None else f"{sign}{number(figure['aim'])}{unit}"
            made = [f"`{record['command']}`" + (" (smoke)" if record["quick"] else ""), record["date"]]
            rows.append(
                [figure["what"], f"{value}{error}{unit}", target, aim, figure["verdict"], figure["compared"], *made]
            )
    header = ["figure", "measured", "target", "aim", "verdict", "compared with", "command", "date"]
    return "## All figures\n\n" + markdown(header, rows)


def _machines(records: list[dict]) -> str:
    """Machines, each with the scripts that ran on it."""
    seen: dict[str, list[str]] = {}
    for record in records:
        described = "; ".join(
            f"{key} {value}" for key, value in record["machine"].items() if key != "load at the start"
        )
        seen.setdefault(described, []).append(
            f"{Path(record['script']).stem} (load {record['machine']['load at the start']})"
        )
    lines = [f"- {', '.join(scripts)}: {described}." for described, scripts in seen.items()]
    return "## Machine\n\nThe load is that of the whole machine when the script began.\n\n" + "\n".join(lines) + "\n"


def _section(record: dict) -> str:
    purpose = record["purpose"].rstrip(".")
    lines = [
        f"## {Path(record['script']).stem}\n",
        f"{purpose}. `{record['command']}`, seed {record['seed']}, model {record['model']}, {record['wall_seconds']:.0f} s of wall time.\n",
    ]
    lines += [f"- {note}" for note in record["notes"]] + ([""] if record["notes"] else [])
    lines += [f"- {f['what']}: {f['note']}" for f in record["figures"] if f["note"]] + [""]
    for table in record["tables"]:
        lines += [f"### {table['title']}\n", markdown(table["header"], table["rows"])]
    return "\n".join(lines)


if __name__ == "__main__":
    write_page()
