"""Options of the verbs from a TOML file: a table for each verb, options by the names that they have on the command line."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import tomllib
import typer

from dig_core.errors import IncompatibleError

__all__ = ["read_options"]


def read_options(context: typer.Context, path: Path | None) -> Path | None:
    """Make what the file says the defaults of the verbs; what is said on the command line goes before it.

    Raises IncompatibleError for a file that is no TOML, and for a verb or an option that there is not, with the nearest name.
    """
    if path is None:
        return None
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise IncompatibleError(f"{path} is no TOML file: {error}. Expected tables such as [sample] with lines such as n = 100.") from error
    context.default_map = _known(given, context.command, context, str(path))
    return path


def _known(given: dict[str, Any], command: Any, context: Any, where: str) -> dict[str, Any]:
    """``given`` with the names that parameters have in Python, tables of a group's verbs within."""
    verbs = {name: command.get_command(context, name) for name in getattr(command, "list_commands", lambda _: ())(context)}
    names = {} if verbs else {spelling: p.name for p in command.params if p.name != "help" for spelling in _spellings(p)}
    found = {}
    for name, value in given.items():
        if name not in verbs and name not in names:
            near = get_close_matches(name, [*verbs, *names], 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise IncompatibleError(f"{where} has {name!r}, expected one of {', '.join(sorted({*verbs, *names}))}.{hint}")
        if name in verbs and not isinstance(value, dict):
            raise IncompatibleError(f"{where} has {name} = {value!r}, expected a table [{name}] of options.")
        if name in verbs:
            found[name] = _known(value, verbs[name], context, f"{where}, [{name}],")
        elif names[name] in found:
            raise IncompatibleError(f"{where} has {name!r} twice, under two names of one option.")
        else:
            found[names[name]] = value
    return found


def _spellings(parameter: Any) -> set[str]:
    """Names of a parameter: in Python, and its options without dashes in front, with or without those within."""
    flags = {flag.lstrip("-") for flag in (parameter.opts if parameter.param_type_name == "option" else [])}
    return {parameter.name, *flags, *(flag.replace("-", "_") for flag in flags)}
