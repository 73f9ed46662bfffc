"""One thread for everything, set before torch and OpenMM are imported; a seeded generator for tests that want one."""

from __future__ import annotations

import os
import tempfile

# Thread pools are sized when the libraries load, and tests on few cores lose more to contention than they gain.
for _library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
os.environ.setdefault("OPENMM_CPU_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# No test sees the models that a user has pulled.
os.environ["DIG_PLUGINS_CACHE"] = os.path.join(tempfile.gettempdir(), "dig-plugins-no-cache")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def rng() -> np.random.Generator:
    """A fresh generator with a fixed seed."""
    return np.random.default_rng(20240508)
