"""A command line in the test's own process."""

from __future__ import annotations

import sys

import pytest

from dig_plugins import cli

REPORTING = {"demo", "sample", "density", "mc", "interpolate", "design", "adsorb", "validate", "train"}


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """A command in this process, in an empty directory: exit code, stdout and stderr. Reports have tests of their own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        bare = ["--no-report"] if arguments[0] in REPORTING and not {"--report", "--help"} & set(arguments) else []
        monkeypatch.setattr(sys, "argv", ["dig-plugins", *arguments, *bare])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run
