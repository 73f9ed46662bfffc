"""Adsorption on slabs: roles, placement, sites, grid searches, anomalies, maps, and ensembles with their probabilities."""

from ...lazy import lazily

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
    "find_sites": "search",
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
__getattr__ = lazily(__name__, _HOME, "ase", "ASE")


def __dir__() -> list[str]:
    return __all__
