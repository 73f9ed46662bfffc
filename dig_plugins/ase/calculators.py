"""ASE calculators by the names that commands take."""

from __future__ import annotations

import importlib

from dig_core.errors import IncompatibleError
from dig_core.plugins import offer, offers

__all__ = ["CALCULATORS", "calculator_named"]

CALCULATORS = "dig_plugins.ase.calculators"
"""Entry points of other packages: a name -> what makes an ASE calculator when it is called without arguments."""


def calculator_named(name: str):
    """An ASE calculator: ``"chgnet"`` (r2SCAN) or ``"sevennet"`` (SevenNet-0), both with the weights that their wheels ship, ``"emt"``
    (smoke tests only), what an installed package offers as an entry point of :data:`CALCULATORS`, or ``"module:Class"``.

    ``Class``, or the entry point, is anything that makes a calculator when it is called without arguments; Python must find the module:
    see PYTHONPATH.

    Raises
    ------
    IncompatibleError: another name, or a class that needs arguments. ImportError: what is to be installed. UnsupportedError: a package
    that cannot be imported.
    """
    if name in _NAMED:
        make, package = _NAMED[name]
        try:
            return make()
        except ModuleNotFoundError as error:
            raise ImportError(f"the calculator {name} needs {error.name}: pip install {package}.") from error
    make = offer(CALCULATORS, name)
    if make is None:
        module, colon, kind = name.partition(":")
        if not (module and colon and kind):
            known = ", ".join([*_NAMED, *offers(CALCULATORS)])
            raise IncompatibleError(f"expected a calculator as {known} or module:Class, got {name!r}.")
        make = getattr(importlib.import_module(module), kind, None)
        if not callable(make):
            raise IncompatibleError(f"the module {module} has no class or function {kind}: expected one that makes a calculator.")
    try:
        return make()
    except TypeError as error:
        raise IncompatibleError(f"{name} cannot be called without arguments ({error}): name a function that makes it.") from error


def _emt():
    from ase.calculators.emt import EMT

    return EMT()


def _chgnet():
    from chgnet.model import CHGNet
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(CHGNet.load(model_name="r2scan", use_device="cpu", verbose=False), use_device="cpu")


def _sevennet():
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator("7net-0", device="cpu")


_NAMED = {"emt": (_emt, "ase"), "chgnet": (_chgnet, "chgnet"), "sevennet": (_sevennet, "sevenn")}
"""Name -> what makes the calculator, and the package that it comes with."""
