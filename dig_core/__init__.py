"""The Distributional Graphormer: score model, diffusion, training, sampling, density, exact Monte Carlo. Knows no engine."""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {"Card": "dig", "Descriptor": "system.descriptor", "DiG": "dig", "Geometry": "types", "Samples": "types", "Streams": "random"}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str):
    """Public names are imported when they are first used."""
    if name not in _HOME:
        raise AttributeError(f"dig_core has no {name!r}; it has {', '.join(__all__)}.")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
