"""Verdicts: a good model is trusted; a spoilt one, a heavy tail, a state never proposed and a model without an energy are not."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from dig_core.diffusion import Diffusion, Euclidean, Joint, LogSNR
from dig_core.energy import AnalyticScore, GaussianMixture
from dig_core.montecarlo.chain import Candidates, Pool
from dig_core.testing import LawEnergy, toy
from dig_core.types import Geometry
from dig_plugins import models
from dig_plugins.tasks.references import against_reference, against_structures
from dig_plugins.tasks.subjects import Subject, subject
from dig_plugins.tasks.tails import pareto_k
from dig_plugins.tasks.verdicts import Check, verdict_of
from dig_plugins.tasks.weights import weight_checks

NAME = "alanine-dipeptide"


def candidates(log_weights: np.ndarray) -> Candidates:
    n = len(log_weights)
    return Candidates(np.zeros((n, 1, 3)), -log_weights, np.zeros(n), np.zeros(n, dtype=np.uint8))


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if check.passed is False}


# Weights -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8, 1.2])
def test_shape_of_pareto_tails_is_found(k, rng):
    """exp(k E), E exponential, is Pareto of shape k; the estimate is drawn to 0.5 by ten observations of some 270."""
    found = [pareto_k(k * rng.exponential(size=8000)) for _ in range(20)]
    assert abs(np.mean(found) - k) < 4 * np.std(found) / math.sqrt(len(found)) + 0.04 * abs(k - 0.5) + 0.02


def test_tails_without_a_shape():
    assert pareto_k(np.zeros(1000)) == -math.inf and pareto_k(np.zeros(10)) == math.inf


def test_weights_of_a_good_model_pass(rng):
    log_weights = rng.normal(0, 0.5, 2000)
    checks, figures = weight_checks(candidates(log_weights), {"raw_ess": 0.78})
    assert not failed(checks)
    weights = np.exp(log_weights)
    assert figures["raw_ess"] == pytest.approx(weights.sum() ** 2 / (2000 * (weights**2).sum()))
    # The mean of log-normal weights is exp(s^2 / 2).
    assert abs(figures["log_z"] - 0.125) < 4 * figures["log_z_stderr"]


@pytest.mark.parametrize(
    ("log_weights", "wanted"),
    [
        (lambda rng: 2.0 * rng.exponential(size=2000), {"tail of the weights", "heaviest weight", "raw effective sample size"}),
        (lambda rng: np.r_[rng.normal(0, 0.1, 1999), 9.0], {"heaviest weight", "raw effective sample size", "convergence"}),
        (lambda rng: np.r_[rng.normal(0, 0.1, 1000), rng.normal(1, 0.1, 1000)], {"halves"}),
        (lambda rng: np.full(2000, -np.inf), {"proposals"}),
        (lambda rng: rng.normal(0, 1.0, 2000), {"registry"}),
    ],
    ids=["heavy tail", "one structure", "drift", "nothing", "worse than registered"],
)
def test_weights_that_cannot_be_trusted(log_weights, wanted, rng):
    checks, _ = weight_checks(candidates(log_weights(rng)), {"raw_ess": 0.9})
    assert wanted <= failed(checks)
    verdict = verdict_of(checks, True, True)
    assert not verdict.trusted and all(name in verdict.said for name in wanted)


def test_no_energy_no_trust():
    verdict = verdict_of([Check("scores", True, "fine")], weighed=False, unseen=True)
    assert not verdict.trusted and "no weights" in verdict.said
    assert "go unseen" in verdict_of([], True, unseen=True).said and "go unseen" not in verdict_of([], True, unseen=False).said


@pytest.mark.parametrize("missing", [False, True])
def test_a_state_that_is_never_proposed_shows_in_given_structures(missing):
    """The weights of a model of one state of two are perfect; structures of the true law tell."""
    process = Joint(x=Diffusion(Euclidean(3), LogSNR()))
    means, variances = torch.tensor([[-4.0, 0, 0], [4.0, 0, 0]]), 0.3 * torch.eye(3).expand(2, 3, 3)
    law = GaussianMixture([0.6, 0.4], means, variances)
    truth = AnalyticScore(process, {"x": law})
    known = AnalyticScore(process, {"x": GaussianMixture([1.0], means[:1], variances[:1])}) if missing else truth
    energy, dig = LawEnergy(truth), toy(known)
    found = Pool(dig.proposal(steps=64), energy, seed=1, batch=500).take(1500)
    checks, _ = weight_checks(found, {})
    assert not failed(checks)
    geometry = energy.coordinates.decode(truth.sample(800, torch.Generator().manual_seed(2)))
    (check,) = against_structures(Subject(dig, "toy", lambda path: geometry, energy), Geometry(geometry.positions), found, 3, 64)
    assert check.passed is not missing, check.said


# Models ------------------------------------------------------------------------------------------------------------------


def test_a_shipped_model_is_trusted(call, tmp_path):
    pytest.importorskip("openmm")
    code, out, err = call("validate", NAME, "-n", "600", "--seed", "1", "--out", "v.json")
    assert code == 0, out + err
    held = json.loads((tmp_path / "v.json").read_text())
    assert held["trusted"] and held["verdict"] in out and held["verdict"].startswith("Can be trusted")
    assert held["raw_ess"] == pytest.approx(models.index()[NAME]["raw_ess"], abs=0.1)
    names = {check["name"] for check in held["checks"]}
    assert {"noising", "scores", "coordinates", "samples", "gradient of the energy", "energy", "registry", "reference"} <= names


def test_populations_beside_a_long_run_are_judged_by_what_their_number_can_show():
    """Bins that a few hundred proposals miss by chance are no fault; a state that thousands of them lack is."""
    pytest.importorskip("openmm")
    from dig_plugins.openmm import backbone_dihedrals

    asked = subject(NAME, None)
    found = Pool(asked.dig.proposal(), asked.energy, seed=5, batch=1024).take(6000)
    whole, parts = slice(None), [slice(k, k + 300) for k in range(0, 6000, 300)]
    checks = [against_reference(NAME, asked, Candidates(*(x[part] for x in found)))[0] for part in (whole, *parts)]
    assert not failed(checks) and checks[0].passed, [check.said for check in checks]
    phi = backbone_dihedrals(asked.system.topology).measure(found.positions / 10)[0][:, 0]
    lacking = Candidates(*(x[phi < 0] for x in found))
    assert failed(against_reference(NAME, asked, lacking)) == {"reference"}


def test_a_spoilt_model_is_not(call, tmp_path):
    """Draws of a network with noise on its last layers still have exact weights, of which hardly any counts."""
    pytest.importorskip("openmm")
    dig, generator = models.load(NAME), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in dig.model.parameters():
            parameter += 0.3 * parameter.std().nan_to_num() * torch.randn(parameter.shape, generator=generator)
    dataclasses.replace(dig, card=dataclasses.replace(dig.card, name="spoilt")).save(tmp_path / "spoilt.safetensors")
    entry = models.index()[NAME]
    files = [word for name in entry["force_field"] for word in ("--forcefield", name)]
    system = ["--of", str(models.path(NAME).with_name(entry["structure"])), *files]
    code, out, _ = call("validate", "spoilt.safetensors", *system, "-n", "300", "--seed", "1", "--steps", "16")
    assert code == 4 and "Cannot be trusted, because of" in out and "raw effective sample size" in out
    held = json.loads((tmp_path / "validation.json").read_text())
    assert not held["trusted"] and held["raw_ess"] < 0.3
    assert next(check for check in held["checks"] if check["name"] == "scores")["passed"], "it is a score model, only a bad one"


def test_a_model_without_an_energy_is_not(call):
    pytest.importorskip("pymatgen")
    code, out, _ = call("validate", "carbon", "--of", "C6", "--steps", "4", "--seed", "1")
    assert code == 4 and "the model was given no energy" in out and "ok      scores" in out
