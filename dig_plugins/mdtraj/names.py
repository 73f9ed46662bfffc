"""Names of residues: the standard ones, what is read as one of them, what is no residue of a chain."""

from __future__ import annotations

from collections.abc import Mapping

from dig_core.errors import IncompatibleError
from dig_core.system.protein import LETTERS

__all__ = ["CAPS", "REPLACED", "WATERS", "hint", "letter_of", "replacements"]

# Protonation states, disulfides and oxidation as Amber, CHARMM, GROMACS and OPLS call them; selenomethionine of crystals.
_SAME = {
    "HIS": "HID HIE HIP HSD HSE HSP HISD HISE HISH HISP HISA HISB",
    "CYS": "CYX CYM CYS2 CYSH",
    "ASP": "ASH ASPP ASPH",
    "GLU": "GLH GLUP GLUH",
    "LYS": "LYN LSN LYSH",
    "ARG": "ARN",
    "TYR": "TYM",
    "MET": "MSE",
}
REPLACED: dict[str, str | None] = {other: name for name, others in _SAME.items() for other in others.split()}
"""Names that are read as another without being asked."""

# What the Chemical Component Dictionary of the wwPDB calls the parent: only proposed, in errors.
_PARENT = {
    "SER": "SEP", "THR": "TPO", "TYR": "PTR TYS", "CYS": "CSO CSD OCS CME CAS CSX SEC", "LYS": "KCX MLY MLZ M3L ALY LLP PYL",
    "PRO": "HYP", "GLN": "PCA", "GLU": "CGU", "LEU": "NLE MLE", "ALA": "AIB ABA", "HIS": "HIC", "MET": "FME",
}  # fmt: skip
_HINTS = {other: name for name, others in _PARENT.items() for other in others.split()}

WATERS = frozenset("HOH WAT H2O DOD SOL TIP TIP3 TP3 T3P TIP4 TP4 T4P TIP5 TP5 SPC SPCE OPC OPC3".split())
CAPS = frozenset("ACE NME NMA NAC NH2 NHE FOR CT3 CT2".split())


def replacements(asked: Mapping[str, str | None] | None) -> dict[str, str | None]:
    """REPLACED with ``asked`` on top. Raises IncompatibleError where a residue is to be read as something unknown."""
    asked = {str(name).upper(): value and str(value).upper() for name, value in (asked or {}).items()}
    for name, value in asked.items():
        if value is not None and value not in LETTERS:
            raise IncompatibleError(
                f"replace={{{name!r}: {value!r}}}: expected one of {', '.join(LETTERS)}, or None for residues to leave out."
            )
    return {**REPLACED, **asked}


def letter_of(name: str, replace: Mapping[str, str | None]) -> str | None:
    """The one-letter code of a residue, None for names that are not known (those that ``replace`` leaves out among them).

    Amber's names of terminal residues, a standard one behind N or C (``NALA``), are known.
    """
    name = name.upper()
    if name in replace:
        return LETTERS.get(replace[name] or "")
    if len(name) == 4 and name[0] in "NC" and name not in LETTERS:
        return letter_of(name[1:], replace) if name[1:] in LETTERS or name[1:] in replace else None
    return LETTERS.get(name)


def hint(name: str) -> str:
    """The argument ``replace`` that would read such a residue as the nearest standard one."""
    return f'replace={{"{name}": "{_HINTS.get(name.upper(), "ALA")}"}}'
