"""What other packages offer by entry points is found by name, imported when it is asked for, and named when it is broken."""

from __future__ import annotations

import sys

import pytest
import torch
from typer.testing import CliRunner

import dig_core
from dig_core.coordinates import Cartesian
from dig_core.diffusion import Diffusion, Joint, LogSNR, ZeroCentroid
from dig_core.dig import Card, DiG
from dig_core.errors import CheckpointError, UnsupportedError
from dig_core.score import NoiseScore
from dig_core.system.descriptor import molecule
from dig_plugins import models

CODE = '''
from pathlib import Path
import torch
from torch import nn

MODEL = Path(__file__).with_name("water.safetensors")

class Shrink(nn.Module):
    """The noise of a Gaussian of ``width``."""
    def __init__(self, width: float = 0.5):
        super().__init__()
        self.config, self.width, self.scale = {"width": width}, width, nn.Parameter(torch.ones(()))

    def forward(self, state, t, descriptor):
        x = state["pos"]
        return {"pos": self.scale * x}, {"pos": torch.zeros(len(x), dtype=x.dtype)}

def springs():
    from ase.calculators.emt import EMT
    return EMT()
'''
OFFERS = """[dig_core.plugins]
Shrink = offered_parts:Shrink
Gone = offered_parts:Gone
[dig_plugins.models]
their-water = offered_parts:MODEL
alanine-dipeptide = offered_parts:MODEL
[dig_plugins.ase.calculators]
springs = offered_parts:springs
broken = no_such_package:springs
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with entry points; a model of its own network is beside it."""
    (tmp_path / "offered_parts.py").write_text(CODE)
    about = tmp_path / "their_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(OFFERS)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("offered_parts", None)


def model():
    import offered_parts

    process = Joint(pos=Diffusion(ZeroCentroid(3), LogSNR()))
    water = molecule([8, 1, 1], [(0, 1), (0, 2)])
    return DiG(NoiseScore(offered_parts.Shrink(0.7), process), Cartesian(), water, Card(name="their water"))


def test_a_network_of_another_package_is_saved_and_read_by_name(package):
    made = model()
    made.save(package / "water.safetensors")
    del sys.modules["offered_parts"]  # whoever reads it need not have imported it
    back = models.load("their-water")
    assert back.model.network.config == {"width": 0.7} and back.card == made.card
    one, other = (dig.sample(3, seed=1, steps=4).geometry.positions for dig in (made, back))
    assert torch.equal(one, other)


def test_names_of_the_registry_come_first(package):
    assert models.load("alanine-dipeptide").card.name == "alanine-dipeptide"
    assert models.offered() == {"their-water": "their-package"}


def test_nothing_is_imported_until_it_is_asked_for(package):
    from dig_plugins.cli import app

    listed = CliRunner().invoke(app, ["models", "list"])
    assert listed.exit_code == 0 and "their-water" in listed.output and "their-package" in listed.output
    models.load("alanine-dipeptide")
    assert "offered_parts" not in sys.modules


def test_what_is_broken_is_named(package):
    with pytest.raises(CheckpointError, match="their-package.*no file"):
        models.load("their-water")
    with pytest.raises(CheckpointError, match="of other packages: their-water"):
        models.load("their-wine")
    with pytest.raises(UnsupportedError, match=r"their-package offers 'Gone'.*no attribute"):
        dig_core.plugins.offer("dig_core.plugins", "Gone")


def test_calculators_of_other_packages_have_names(package):
    emt = pytest.importorskip("ase.calculators.emt")
    from dig_plugins.ase import calculator_named

    assert isinstance(calculator_named("springs"), emt.EMT)
    with pytest.raises(UnsupportedError, match="their-package.*No module named 'no_such_package'"):
        calculator_named("broken")
    with pytest.raises(ValueError, match="chgnet, sevennet, springs, broken or module:Class"):
        calculator_named("spring")
