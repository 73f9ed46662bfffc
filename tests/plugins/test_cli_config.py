"""Options from a file: they arrive as if they were typed, what is typed goes before them, and mistakes are one line that names them."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from dig_core.errors import CheckpointError
from dig_plugins import tasks
from tests.plugins.test_cli_verbs import WIRES

OPTIONS = """
[sample]
n = 5

[validate]
model = "m.safetensors"
of = "x.pdb"
forcefield = ["a.xml", "b.xml"]
temperature = 310
n = 500
structures = "s.xtc"
steps = 5
report = false
out = "o"
seed = 7

[train.adsorption]
slab = "s.traj"
adsorbate = "CO"
calculator = "emt"
frames = "f.traj"
model = "adsorb-general"
temperature = 310.0
evaluations = 9
steps = 5
yielding = true
report = false
out = "o"
seed = 7
"""


@pytest.fixture
def arrives(call, monkeypatch):
    """What the function of a verb was given by a command."""

    def run(name: str, *command: str) -> dict:
        signature, got = inspect.signature(getattr(tasks, name)), {}

        def taken(*arguments, **options):
            got.update(signature.bind(*arguments, **options).arguments)
            raise CheckpointError("enough")

        with monkeypatch.context() as patch:
            patch.setattr(tasks, name, taken)
            code, _, said = call(*command)
        assert (code, said) == (2, "dig-plugins: enough\n")
        return got

    return run


@pytest.mark.parametrize("name", ["train_adsorption", "validate"])
def test_what_a_file_says_arrives_as_if_it_were_typed(name, arrives):
    Path("options.toml").write_text(OPTIONS)
    typed = arrives(name, *WIRES[name][0].split())
    assert arrives(name, "--config", "options.toml", *WIRES[name][0].split()[: 2 if name.startswith("train") else 1]) == typed


def test_what_is_typed_goes_before_the_file(arrives):
    Path("options.toml").write_text(OPTIONS)
    found = arrives("validate", "--config", "options.toml", "validate", "other.safetensors", "-n", "600")
    assert (found["model"], found["n"], found["seed"]) == ("other.safetensors", 600, 7)


WRONG = {
    "a verb": ("[smaple]\nn = 5", "'sample'"),
    "an option": ("[sample]\nsede = 5", "'seed'"),
    "an option of a verb in a group": ("[train.openmm]\nbudgt = '1h'", "'budget'"),
    "a table": ("sample = 5", "[sample]"),
    "twice": ("[sample]\nforcefield = ['a']\nforce_field = ['b']", "twice"),
    "a number": ("[sample]\nn = 'many'", "valid integer"),
    "another kind of file": ("{}", "TOML"),
}


@pytest.mark.parametrize(("text", "word"), WRONG.values(), ids=list(WRONG))
def test_mistakes_are_named(text, word, call):
    Path("options.toml").write_text(text)
    code, _, said = call("--config", "options.toml", "sample", "alanine-dipeptide")
    assert code == 2 and word in said and "Traceback" not in said


def test_a_file_that_is_not_there(call):
    assert call("--config", "absent.toml", "sample", "alanine-dipeptide")[0] == 2
