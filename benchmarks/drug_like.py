"""Drug-like molecules from their force field alone: what fit gives in eight minutes each. Half an hour.

Not part of ``make bench`` for its length. The systems are in benchmarks/systems, with how they were made; trainings are kept in
runs/drug_like, and one that was cut off goes on.
"""

from __future__ import annotations

import gzip

import openmm as mm
from common import HERE, Figure, Findings, Options, Table, command_line
from openmm import app

from dig_core.montecarlo.analysis import effective_sample_size, metropolis_acceptance
from dig_core.montecarlo.chain import Pool
from dig_plugins.openmm import fit
from dig_plugins.openmm.energy import OpenMMEnergy

TEMPERATURE = 300.0


def measure(options: Options) -> Findings:
    """Every molecule in turn."""
    figures, rows = [], []
    for pdb in sorted((HERE / "systems").glob("*.pdb"))[: options.size(99, 1)]:
        structure = app.PDBFile(str(pdb))
        system = mm.XmlSerializer.deserialize(gzip.decompress(pdb.with_suffix(".xml.gz").read_bytes()).decode())
        found = fit(
            system, structure.topology, TEMPERATURE, positions=structure.getPositions(asNumpy=True), seed=options.seed,
            budget="5s" if options.quick else "8min", progress=False, name=pdb.stem,
            out=None if options.quick else HERE.parent / "runs/drug_like" / pdb.stem,
        )  # fmt: skip
        energy, quality = OpenMMEnergy(system, TEMPERATURE), {}
        for paths in (1, 4):
            pool = Pool(found.dig.proposal(paths=paths), energy, seed=options.seed, batch=512)
            log_weight = pool.take(options.size(8192, 512)).log_weight
            quality[paths] = (effective_sample_size(log_weight), metropolis_acceptance(log_weight))
        torsions = len(found.dig.coordinates.torsion_atoms)
        population = next((stage for stage in found.history if stage.get("stage") == "population"), {"rungs": [], "families": 0.0})
        cost = [f"{population['families']:.3f} after {len(population['rungs'])}", found.evaluations, round(found.seconds / 60, 1)]
        rows.append([pdb.stem, system.getNumParticles(), torsions, *(round(x, 3) for p in (1, 4) for x in quality[p]), *cost])
        note = f"raw ESS {quality[1][0]:.3f}; with four paths a structure {quality[4][1]:.3f} and {quality[4][0]:.3f}."
        figures.append(Figure(f"raw acceptance from the force field alone, {pdb.stem}", quality[1][1], note=note))
    header = ["molecule", "atoms", "free torsions", "raw ESS", "acceptance", "ESS, 4 paths", "acceptance, 4 paths"]
    header += ["ancestors left, rungs", "energies", "minutes"]
    notes = ["Minutes are wall time, which other work on the machine lengthens; its load stands under Machine."]
    return Findings(figures, [Table("OpenFF Sage, vacuum, 300 K", header, rows)], notes)


if __name__ == "__main__":
    command_line(__doc__, "drug_like", measure)
