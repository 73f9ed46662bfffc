"""``MLPotential("dig", model=...)`` of openmmml. Its entry points are read at ``import openmmml``: nothing is imported here."""

# Not even openmmml: whoever imports this module first would have it load a factory that is not defined yet.


class DiGPotentialFactory:
    """What the entry point ``dig`` in ``openmmml.potentials`` names.

    ::

        potential = MLPotential("dig", model="alanine-dipeptide")
        system = potential.createSystem(topology)
        mixed = potential.createMixedSystem(topology, force_field_system, atoms)  # a whole molecule among others

    ``model`` and the options ``temperature``, ``t``, ``energy``, ``backend`` are those of :func:`.force.make_force`, here or
    in ``createSystem``. In a mixed System the force field gives the molecule's interactions with everything else; a model
    trained in implicit solvent has that solvent in its law already.
    """

    def createImpl(self, name: str, model=None, **options):
        """An ``MLPotentialImpl``. Raises IncompatibleError without a model."""
        from openmmml.mlpotential import MLPotentialImpl

        from dig_core.errors import IncompatibleError

        if model is None:
            raise IncompatibleError(
                f"expected MLPotential({name!r}, model=...) with a shipped model's name or a checkpoint's path, got no model: "
                "`dig-plugins models` lists those that ship."
            )
        return type("DiGPotential", (_Potential, MLPotentialImpl), {})(model, options)


class _Potential:
    """The methods openmmml calls; its base class, which has the others, is there only once openmmml is loaded."""

    def __init__(self, model, options: dict):
        self.model, self.options = model, options

    def addForces(self, topology, system, atoms, forceGroup, **options):
        """Add the force to ``system``. Raises IncompatibleError unless ``atoms`` (all if None) are the model's, whole and in order."""
        from .convert import check_topology
        from .force import make_force
        from .learned import identify, load
        from .subset import subtopology

        atoms = None if atoms is None else [int(i) for i in atoms]
        law = load(*identify(self.model))
        check_topology(law.descriptor, topology if atoms is None else subtopology(topology, atoms))
        known = {key: value for key, value in options.items() if key in _OPTIONS}  # others are openmmml's own
        force = make_force(self.model, particles=atoms, **{**self.options, **known})
        force.setForceGroup(forceGroup)
        system.addForce(force)

    def getMLLongRange(self) -> bool:
        """A molecule by itself: nothing acts across the faces of a box."""
        return False


_OPTIONS = ("temperature", "t", "energy", "backend")
