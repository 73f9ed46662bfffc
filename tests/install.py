"""The distribution as a stranger gets it: sdist, wheel, an empty environment, the README's first lines and some of the tests there.

    python tests/install.py --python python3.12 --extras openmm,ase
    python tests/install.py --lowest --pin torch==2.13.0
    python tests/install.py --extras openmm,ase --beside mace-torch openmmml openmmtools

Not collected by pytest: it needs a package index, minutes and a gigabyte. Its last line is a row of the table in docs/versioning.md.
"""

from __future__ import annotations

import argparse
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]

TESTS = """
    tests/core/test_diffusion.py tests/core/test_solvers.py tests/core/test_checkpoint.py tests/core/test_chain.py tests/core/test_team.py
    tests/plugins/test_openmm_montecarlo.py tests/plugins/test_openmm_force.py tests/plugins/test_openmm_move.py
    tests/plugins/test_ase_sampler.py tests/plugins/test_pymatgen_convert.py tests/plugins/test_mdtraj_observables.py
    tests/plugins/test_rdkit_convert.py tests/plugins/test_rdkit_energy.py tests/plugins/test_report.py tests/plugins/test_cli.py
""".split()
"""Laws of the core, then every engine once; what is not installed is skipped."""

SHOWN = "torch numpy openmm ase pymatgen mdtraj rdkit openmmtools openmmml mace-torch".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    parser.add_argument("--extras", default="openmm,ase,pymatgen,mdtraj,rdkit,viz,analysis,dask", help="of dig-plugins")
    parser.add_argument("--lowest", action="store_true", help="every declared requirement at its lower bound; else the newest there is")
    parser.add_argument("--pin", nargs="*", default=[], metavar="NAME==VERSION", help="hold some at other versions")
    parser.add_argument("--beside", nargs="*", default=[], metavar="NAME", help="packages to install along")
    parser.add_argument("--tests", nargs="*", default=TESTS, metavar="FILE", help="which of the tests")
    parser.add_argument("--keep", metavar="DIR", help="work here, and leave it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dig-install-") as place:
        work = Path(options.keep or place).resolve()
        work.mkdir(parents=True, exist_ok=True)
        wheel = build(work / "dist")
        python = environment(work, wheel, options)
        first_lines(python, work)
        said = tests(python, work, options.tests)
        print(row(python, options, said))
        if re.search("failed|error", said):
            sys.exit(1)


def build(place: Path) -> Path:
    """The wheel, made from the sdist; both hold what they should."""
    if not place.exists():
        call(sys.executable, "-m", "build", "--outdir", place, ROOT)
    (sdist,), (wheel,) = place.glob("*.tar.gz"), place.glob("*.whl")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    tracked = {name for name in listed if name and not name.startswith(".ci/")}
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    same("the sdist", packed - {"PKG-INFO"}, tracked)
    with zipfile.ZipFile(wheel) as archive:
        names, info = archive.namelist(), next(name for name in archive.namelist() if name.endswith("/METADATA")).partition("/")[0]
        about = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        points = archive.read(f"{info}/entry_points.txt").decode()
    code = {name for name in tracked if name.startswith(("dig_core/", "dig_plugins/"))}
    same("the wheel", {name for name in names if not name.startswith(f"{info}/")}, code)
    wanted = {f"{info}/licenses/LICENSE", "dig_core/py.typed", "dig_plugins/py.typed"} - set(names)
    wanted |= {name for name in ("dig-plugins", "dig", "dig-map") if not re.search(rf"^{name} = ", points, re.MULTILINE)}
    wanted |= {name for name in ("Name", "Version", "Summary", "License-Expression", "Requires-Python") if not about[name]}
    if wanted:
        sys.exit(f"the wheel lacks {sorted(wanted)}")
    return wheel


def same(what: str, found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        sys.exit(f"{what} lacks {sorted(wanted - found)} and has beyond what is tracked {sorted(found - wanted)}")


def environment(work: Path, wheel: Path, options: argparse.Namespace) -> Path:
    """An interpreter of its own with the wheel, its requirements and pytest."""
    shutil.rmtree(work / "env", ignore_errors=True)
    call(options.python, "-m", "venv", work / "env")
    python = work / "env/bin/python"
    held = {**(lowest() if options.lowest else {}), **dict(pin.split("==") for pin in options.pin)}
    (work / "held.txt").write_text("".join(f"{name}=={version}\n" for name, version in held.items()))
    wanted = [f"{wheel}[{options.extras}]", "pytest", *options.beside]
    call(python, "-m", "pip", "install", "--quiet", "--no-compile", "-c", work / "held.txt", *wanted)
    call(python, "-m", "pip", "check")
    return python


def lowest() -> dict[str, str]:
    """Name -> lower bound, of every requirement that users may install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: part for name, part in project["optional-dependencies"].items() if name not in ("dev", "docs")}
    return dict(one.split(">=") for part in [project["dependencies"], *extras.values()] for one in part if ">=" in one)


def first_lines(python: Path, work: Path) -> None:
    """A silent import, and the README's first block, with the model that ships, far from the sources."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code, "the README begins with Python"
    (work / "outside").mkdir(exist_ok=True)
    if said := call(python, "-c", "import dig_core, dig_plugins", cwd=work / "outside"):
        sys.exit(f"importing said {said!r}")
    call(python, "-c", code[1], cwd=work / "outside")
    call(python.with_name("dig-plugins"), "doctor", cwd=work / "outside")


def tests(python: Path, work: Path, names: list[str]) -> str:
    """The tests on the installed wheel, from a copy that lies without the sources; pytest's closing line."""
    shutil.rmtree(work / "copy", ignore_errors=True)
    shutil.copytree(ROOT / "tests", work / "copy/tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", work / "copy")
    return call(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *names, cwd=work / "copy", fine=(0, 1)).strip().splitlines()[-1]


def row(python: Path, options: argparse.Namespace, said: str) -> str:
    """A row of the table: interpreter, versions, what pytest said."""
    code = f"import platform, importlib.metadata as m; held = {{d.name.lower(): d.version for d in m.distributions()}}; \
        print(platform.python_version(), *(f'{{n}} {{held[n]}}' for n in {SHOWN!r} if n in held), sep='|')"
    version, *found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip().split("|")
    return f"| {version} | {'lowest' if options.lowest else 'newest'} | {', '.join(found)} | {re.sub(r' in [0-9.]+s.*', '', said)} |"


def call(*command: str | Path, cwd: Path | None = None, fine: tuple[int, ...] = (0,)) -> str:
    """Run, show and return what it says; the end of everything where it fails."""
    print("$", *(str(part)[:200] for part in command), flush=True)
    began, clean = time.monotonic(), {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "check": False}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=clean, **piped)
    print(done.stdout, end="")
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    if done.returncode not in fine:
        sys.exit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    main()
