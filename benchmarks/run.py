"""Every benchmark one after the other, then benchmarks/RESULTS.md: under 15 minutes on two idle cores, a minute with --quick."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from common import HERE, RESULTS
from page import PAGE, write_page

SCRIPTS = ("startup", "density", "proposals", "rates", "exactness", "overheads")


def main() -> None:
    """Run the scripts, each in a process of its own so that none shares memory or threads with another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smoke sizes: the figures mean nothing; needs --out")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="directory of the results and, if given, of RESULTS.md"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", help="a checkpoint file instead of the shipped model; needs --out")
    given = parser.parse_args()
    if (given.quick or given.model) and given.out == RESULTS:
        parser.error("give --out: these figures must not overwrite the measured results.")
    options = ["--out", str(given.out), "--seed", str(given.seed)]
    options += ["--quick"] * given.quick + (["--model", given.model] if given.model else [])
    failed = []
    for script in SCRIPTS:
        print(f"== {script}", flush=True)
        if subprocess.run([sys.executable, str(HERE / f"{script}.py"), *options], check=False).returncode:
            failed.append(script)
    write_page(given.out, PAGE if given.out == RESULTS else given.out / "RESULTS.md")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the page keeps their earlier figures.")


if __name__ == "__main__":
    main()
