"""DiG as a move of openmmtools: composes with its other moves and samplers, travels as a checkpoint's name and hash."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from openmm import app, unit

from dig_core.dig import DiG
from dig_core.errors import IncompatibleError, StateError
from dig_core.random import as_seed

from .learned import identify, load_dig
from .target import ContextMove, Statistics, model_temperature

try:
    from openmmtools.mcmc import IntegratorMoveError, MCMCMove
except ImportError as missing:
    raise ImportError("DiGMove needs openmmtools: pip install 'dig-plugins[openmmtools]'.") from missing

__all__ = ["DiGMove", "DiGMoveError"]

_MODELS: dict[str, DiG] = {}


class DiGMoveError(StateError, IntegratorMoveError):
    """The current state cannot be used; openmmtools writes it down as it does for its own integrators."""

    def __init__(self, message: str, move: DiGMove, context=None):
        IntegratorMoveError.__init__(self, message, move, context)


class DiGMove(MCMCMove):
    """A block of independent proposals, an ``openmmtools.mcmc.MCMCMove``.

    Not a ``MetropolizedMove``, which takes every proposal for symmetric. Mix it with dynamics, which it does not replace::

        move = SequenceMove([DiGMove("alanine-dipeptide", topology), LangevinDynamicsMove(n_steps=500)])

    It is stored (YAML, NetCDF) as the checkpoint's name or path with its sha256, the topology as a table of atoms and bonds, a few
    numbers and the statistics; copies in one process share the network. Velocities are drawn anew after an acceptance and
    kept otherwise. Random numbers depend on (seed, number of attempts) alone.

    Parameters
    ----------
    model: a shipped model's name or a checkpoint's path.
    topology: ``openmm.app.Topology`` of the whole System; the model's atoms are checked against it.
    proposals, seed, scheme, batch, steps, atoms, allow_explicit_solvent, allow_temperature_mismatch: see :class:`.DiGMonteCarlo`.

    Raises
    ------
    IncompatibleError, UnsupportedError: at the first ``apply``, if model and thermodynamic state do not fit.
    """

    def __init__(
        self,
        model: str,
        topology: app.Topology,
        *,
        proposals: int = 32,
        seed: int | None = None,
        scheme: str = "metropolis",
        batch: int = 1024,
        steps: int | None = None,
        atoms: Sequence[int] | None = None,
        allow_explicit_solvent: bool = False,
        allow_temperature_mismatch: bool = False,
    ):
        super().__init__()
        source, sha256 = identify(model)
        self._options = {
            "source": source, "sha256": sha256, "topology": _table(topology), "proposals": int(proposals), "seed": as_seed(seed),
            "scheme": scheme, "batch": int(batch), "steps": steps, "atoms": None if atoms is None else [int(a) for a in atoms],
            "allow_explicit_solvent": bool(allow_explicit_solvent), "allow_temperature_mismatch": bool(allow_temperature_mismatch),
        }  # fmt: skip
        self._held: tuple[tuple, ContextMove] | None = None
        self._saved: dict = {"blocks": 0, "next": 0, **Statistics()._asdict()}

    @property
    def seed(self) -> int:
        """Of proposals, decisions and velocities."""
        return self._options["seed"]

    @property
    def n_proposed(self) -> int:
        """Proposals so far."""
        return self._now()["proposed"]

    @property
    def n_accepted(self) -> int:
        """Accepted ones among them."""
        return self._now()["accepted"]

    @property
    def fraction_accepted(self) -> float:
        """Of all proposals; 0 before the first."""
        return self.n_accepted / max(1, self.n_proposed)

    @property
    def statistics(self) -> dict:
        """Counts, and where the random numbers stand: what openmmtools gathers, stores and sets."""
        return self._now()

    @statistics.setter
    def statistics(self, value: dict) -> None:
        self._saved = {**self._saved, **{k: value[k] for k in self._saved if k in value}}
        self._held = None

    def apply(self, thermodynamic_state, sampler_state, context_cache=None) -> None:
        """Test a block of proposals on ``sampler_state``, which is changed in place.

        Raises DiGMoveError if the state's energy or positions are not finite.
        """
        context, _ = self._get_context_cache(context_cache).get_context(thermodynamic_state)
        sampler_state.apply_to_context(context)
        move = self._prepared(thermodynamic_state, context)
        try:
            block = move.attempt(context)
        except StateError as error:
            raise DiGMoveError(str(error), self, context) from error
        if block.records.accepted.any():
            sampler_state.update_from_context(context)

    def _prepared(self, thermodynamic_state, context) -> ContextMove:
        """The move for this System and temperature, built once for each."""
        given = self._options
        key = (thermodynamic_state._standard_system_hash, float(thermodynamic_state.temperature / unit.kelvin))
        if self._held is not None and self._held[0] == key:
            return self._held[1]
        dig = _shared(given["source"], given["sha256"])
        temperature = model_temperature(dig, thermodynamic_state.temperature, given["allow_temperature_mismatch"])
        system = thermodynamic_state.get_system(remove_thermostat=True, remove_barostat=True)
        box = None
        if system.usesPeriodicBoundaryConditions():
            box = np.asarray(context.getState().getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer))
        move = ContextMove(
            dig, system, _topology(given["topology"]), temperature, seed=given["seed"], proposals=given["proposals"],
            scheme=given["scheme"], batch=given["batch"], steps=given["steps"], atoms=given["atoms"], box=box,
            allow_explicit_solvent=given["allow_explicit_solvent"],
        )  # fmt: skip
        now = self._now()
        move.go_on(now["blocks"], now["next"], Statistics(*(now[k] for k in Statistics._fields)))
        self._saved, self._held = now, (key, move)
        return move

    def _now(self) -> dict:
        if self._held is None:
            return dict(self._saved)
        move = self._held[1]
        return {"blocks": move.blocks, "next": move.next_proposal, **move.statistics._asdict()}

    def __getstate__(self) -> dict:
        return {**self._options, "statistics": self._now()}

    def __setstate__(self, state: dict) -> None:
        state = dict(state)
        saved = state.pop("statistics", {})
        defaults = {
            "proposals": 32, "scheme": "metropolis", "batch": 1024, "steps": None, "atoms": None, "allow_explicit_solvent": False,
            "allow_temperature_mismatch": False,
        }  # fmt: skip
        missing = [k for k in ("source", "sha256", "topology", "seed") if k not in state]
        if missing:
            raise IncompatibleError(f"a stored DiGMove lacks {', '.join(missing)}: it was written by another version or edited.")
        self._options = {**defaults, **state}
        self._held = None
        self._saved = {"blocks": 0, "next": 0, **Statistics()._asdict(), **saved}

    def __deepcopy__(self, memo) -> DiGMove:
        fresh = type(self).__new__(type(self))
        fresh.__setstate__(self.__getstate__())
        return fresh


def _table(topology: app.Topology) -> dict:
    """Plain lists that :func:`_topology` rebuilds a topology from."""
    atoms = [[a.name, a.element.symbol if a.element else "", a.residue.name, a.residue.index] for a in topology.atoms()]
    return {"atoms": atoms, "bonds": [[b[0].index, b[1].index] for b in topology.bonds()]}


def _topology(table: dict) -> app.Topology:
    topology = app.Topology()
    chain, last, residue, made = topology.addChain(), None, None, []
    for name, symbol, residue_name, number in table["atoms"]:
        if number != last:
            last, residue = number, topology.addResidue(residue_name, chain)
        made.append(topology.addAtom(name, app.Element.getBySymbol(symbol) if symbol else None, residue))
    for i, j in table["bonds"]:
        topology.addBond(made[i], made[j])
    return topology


def _shared(source: str, sha256: str) -> DiG:
    """A model read once a process: copies of a move use one network."""
    if sha256 not in _MODELS:
        _MODELS[sha256] = load_dig(source, sha256)
    return _MODELS[sha256]
