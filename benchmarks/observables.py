"""Observables of protein ensembles beside other programs' values, and what they cost. A minute.

Peers that are not installed are named and left out: pip install mdtraj scipy deeptime tmtools. Structures are made here, chains of 214
residues with hinges and noise, unless DIG_PROTEIN names a folder with adk/adk.psf and adk/adk_dims.dcd: then its C-alphas too.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from common import Figure, Findings, Options, Table, command_line, per_call

import numpy as np  # isort: skip

from dig_plugins.mdtraj import observables as ob

RESIDUES = 214


def measure(options: Options) -> Findings:
    """Every peer in turn, then the times."""
    rng = np.random.default_rng(options.seed)
    sets = {"made": chains(options.size(200, 8), rng)}
    if "DIG_PROTEIN" in os.environ:
        sets["adenylate kinase, 98 frames"] = adenylate_kinase(Path(os.environ["DIG_PROTEIN"]))
    rows, missing = [], []
    for peer, compare in {"mdtraj": with_mdtraj, "scipy": with_scipy, "deeptime": with_deeptime, "tmtools": with_tmtools}.items():
        try:
            import_module(peer)
        except ImportError:
            missing.append(f"{peer} is not installed, nothing was compared with it: pip install {peer}")
            print(missing[-1])
            continue
        for name, frames in sets.items():
            rows += [[name, peer, *row] for row in compare(frames[:98])]
    for row in rows:
        print(*row, sep=" | ")
    table = Table("Differences, ours less theirs", ["structures", "peer", "of what", "least", "largest"], rows)
    return Findings(costs(sets["made"], options), [table], missing)


def chains(n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 214, 3) Angstrom, in order of time: a random chain that bends at two hinges, slowly at one, with noise of up to 1 Angstrom."""
    steps = rng.normal(size=(RESIDUES, 3)) + np.repeat(rng.normal(size=(RESIDUES // 10 + 1, 3)), 10, axis=0)[:RESIDUES]
    chain = np.cumsum(3.8 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
    frames = np.repeat(chain[None], n, axis=0)
    for hinge, memory in ((70, 0.95), (140, 0.8)):
        axis, angle = rng.normal(size=3), 0.0
        for frame in frames:
            angle = memory * angle + np.sqrt(1 - memory**2) * rng.normal(scale=0.5)
            frame[hinge:] = turned(frame[hinge:] - frame[hinge], axis / np.linalg.norm(axis), angle) + frame[hinge]
    return frames + rng.uniform(0, 1, (n, 1, 1)) * rng.normal(size=frames.shape)


def turned(points: np.ndarray, axis: np.ndarray, angle: float) -> np.ndarray:
    """By Rodrigues' formula."""
    along = (points @ axis)[:, None] * axis
    return along + np.cos(angle) * (points - along) + np.sin(angle) * np.cross(axis, points)


def adenylate_kinase(folder: Path) -> np.ndarray:
    import mdtraj

    path = mdtraj.load(str(folder / "adk/adk_dims.dcd"), top=str(folder / "adk/adk.psf"))
    return 10.0 * path.xyz[:, path.topology.select("name CA")].astype(np.float64)


def row(what: str, ours: np.ndarray, theirs: np.ndarray) -> list:
    gap = np.asarray(ours) - np.asarray(theirs)
    return [what, f"{gap.min():.1e}", f"{gap.max():.1e}"]


def with_mdtraj(frames: np.ndarray) -> list[list]:
    """It keeps float32: differences of 1e-5 Angstrom are its rounding."""
    import mdtraj

    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for _ in range(frames.shape[1]):
        topology.add_atom("CA", mdtraj.element.carbon, topology.add_residue("ALA", chain))
    path = mdtraj.Trajectory(frames / 10, topology)
    mean = mdtraj.Trajectory(ob.mean_structure(frames)[None] / 10, topology)
    pairs = ob.apart(frames.shape[1])
    near = (10 * mdtraj.compute_distances(path, pairs) < 8).mean(0)
    return [
        row("RMSD, Angstrom", ob.rmsd(frames, frames[0]), 10 * mdtraj.rmsd(path, path)),
        row("RMSF, Angstrom", ob.rmsf(frames), 10 * mdtraj.rmsf(path, mean)),
        row("contact probability", ob.contact_map(frames)[pairs[:, 0], pairs[:, 1]], near),
        row("radius of gyration, Angstrom", ob.radius_of_gyration(frames), 10 * mdtraj.compute_rg(path)),
    ]


def with_scipy(frames: np.ndarray) -> list[list]:
    from scipy.spatial.distance import jensenshannon
    from scipy.spatial.transform import Rotation
    from scipy.stats import gaussian_kde

    from dig_plugins.mdtraj.observables.divergence import kernel_map

    x, y = (part - part.mean(1, keepdims=True) for part in (frames[1:], frames[:1]))
    theirs = [Rotation.align_vectors(y[0], frame)[1] / np.sqrt(x.shape[1]) for frame in x]
    features = ob.distances(frames, ob.apart(frames.shape[1], every=4))
    points = ob.pca(features).project(features)
    points = np.linalg.solve(np.linalg.cholesky(np.cov(points.T)), (points - points.mean(0)).T).T
    axes = [np.linspace(-3, 3, 20)] * 2
    weights = np.full(len(points), 1 / len(points))
    known = gaussian_kde(points.T, bw_method=0.4)(np.stack(np.meshgrid(*axes, indexing="ij")).reshape(2, -1)).reshape(20, 20)
    shares = [np.histogram2d(*part.T, bins=8, range=[(-4, 4), (-4, 4)])[0] for part in (points[::2], points[1::2])]
    return [
        row("RMSD, Angstrom", ob.rmsd(frames[1:], frames[0]), theirs),
        row("kernel density", kernel_map(points, weights, axes, 0.4), known),
        row("Jensen-Shannon divergence, nats", ob.jensen_shannon(*shares), jensenshannon(*(p.ravel() for p in shares)) ** 2),
    ]


def with_deeptime(frames: np.ndarray) -> list[list]:
    from deeptime.decomposition import TICA

    features = ob.distances(frames, ob.apart(frames.shape[1], every=40))
    if len(features) < 90:
        return []
    parts, lag = [features[:60], features[60:]], 2
    ours = ob.tica(parts, lag)
    model = TICA(lagtime=lag, dim=2, scaling=None, epsilon=1e-10 * np.linalg.eigvalsh(np.cov(features.T)).max()).fit_from_timeseries(parts)
    theirs, mine = model.fetch_model().transform(features), ours.project(features)
    return [
        row("TICA, autocorrelations", ours.values, model.fetch_model().singular_values[:2]),
        row("TICA, coordinates up to their sign", mine, theirs * np.sign((mine * theirs).sum(0))),
    ]


def with_tmtools(frames: np.ndarray) -> list[list]:
    """With the alignment given, residue i to residue i."""
    from tmtools import tm_align

    name = "A" * frames.shape[1]
    theirs = [tm_align(frame, frames[0], name, name, alignment=[name, name]).tm_norm_chain2 for frame in frames]
    return [row("TM-score", ob.tm_score(frames, frames[0]), theirs)]


def costs(frames: np.ndarray, options: Options) -> list[Figure]:
    """Of 1,000 frames with 214 residues."""
    n = options.size(1000, 10)
    x, rng = np.resize(frames, (n, *frames.shape[1:])), np.random.default_rng(options.seed)
    points = rng.normal(size=(options.size(10_000, 200), 2))
    work = {
        f"TM-score, {n} frames": lambda: ob.tm_score(x, x[0]),
        f"RMSD of {n} frames, each pair": lambda: ob.pairwise_rmsd(x),
        f"contact map, {n} frames": lambda: ob.contact_map(x),
        f"RMSF, {n} frames": lambda: ob.rmsf(x),
        f"PCA of all distances, {n} frames": lambda: ob.pca(ob.distances(x)),
        f"divergence by kernels, {len(points)} points": lambda: ob.map_divergence(points, points, method="kernel", rng=rng),
    }
    return [Figure(what, per_call(call, 1), "CPU-s") for what, call in work.items()]


if __name__ == "__main__":
    command_line(__doc__, "observables", measure)
