"""A command line in the test's own process."""

from __future__ import annotations

import sys

import pytest

from dig_plugins import cli


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """A command in this process, in an empty directory: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dig-plugins", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return run
