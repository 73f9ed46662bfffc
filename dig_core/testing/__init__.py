"""The conformance kit: every invariant that parts must hold, as calls that raise AssertionError and say what is wrong.

Run them on your own spaces, schedules, score models, coordinates, energies and proposals.
"""

from .diffusion import check_fokker_planck, check_process, check_schedule, check_score_model, check_space
from .laws import HeatMixture
from .parts import ALL_PROCESSES, ALL_SCHEDULES, ALL_SOLVERS, ALL_SPACES, example_law, example_model
from .proposals import Bare, LawEnergy, Sabotaged, check_proposal, check_streams, toy
from .structures import check_coordinates, check_energy

__all__ = [
    "ALL_PROCESSES", "ALL_SCHEDULES", "ALL_SOLVERS", "ALL_SPACES", "Bare", "HeatMixture", "LawEnergy", "Sabotaged", "check_coordinates",
    "check_energy", "check_fokker_planck", "check_process", "check_proposal", "check_schedule", "check_score_model", "check_space",
    "check_streams", "example_law", "example_model", "toy",
]  # fmt: skip
