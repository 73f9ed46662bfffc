"""Adsorption on slabs: roles, placement, sites, grid searches, anomalies, maps, and ensembles with their probabilities."""

from importlib import import_module

_HOME = {
    "ANOMALIES": "anomaly",
    "AdsorptionData": "data",
    "AdsorptionEnsemble": "ensemble",
    "CoverageReport": "coverage",
    "Roles": "role",
    "Site": "sites",
    "SiteGuess": "mesh",
    "SiteSet": "sites",
    "SiteSurface": "surface",
    "SlabFrame": "frame",
    "SurfaceMap": "maps",
    "anomalies": "anomaly",
    "check_slab": "role",
    "adsorb": "run",
    "at_temperature": "describe",
    "calculator_named": "run",
    "describe_adsorption": "describe",
    "enumerate_sites": "mesh",
    "fit_adsorption": "training",
    "fit_systems": "many",
    "grid_search": "grid",
    "place_adsorbate": "place",
    "on_slab": "sample",
    "read_images": "data",
    "roles": "role",
    "sample_adsorption": "sample",
    "slab_frame": "frame",
    "systems_of": "data",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    """Modules are read when a name is first used: importing this package is cheap, and errors name what to install."""
    if name not in _HOME:
        raise AttributeError(f"dig_plugins.ase.adsorption has no {name!r}; it has {', '.join(__all__)}.")
    try:
        module = import_module(f".{_HOME[name]}", __name__)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "ase":
            raise
        raise ImportError("dig_plugins.ase needs ASE: pip install 'dig-plugins[ase]'.") from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
