"""``ase.visualize.view(images, viewer="dig-map")``: the map of an ensemble's images over its slab, in a window of its own."""

from __future__ import annotations

import sys

from ase.utils.plugins import ExternalViewer

__all__ = ["MAP", "figure", "main"]

MAP = ExternalViewer(
    desc="Map of an adsorbate's density by dig-plugins",
    cli=True,
    fmt="traj",
    argv=[sys.executable, "-m", "dig_plugins.ase.adsorption.viewer"],
)
"""Entry point of the group ``ase.visualize``."""


def figure(path: str, ax=None):
    """Draw the map of an ensemble's file into ``ax``, or into a new figure of pyplot, and return its figure."""
    from .ensemble import AdsorptionEnsemble

    ensemble = AdsorptionEnsemble.read(path)
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.figure(figsize=(7, 5), layout="constrained").add_subplot()
    ensemble.plot(ax)
    return ax.figure


def main(arguments: list[str] | None = None) -> None:
    """``viewer FILE [PICTURE]``: shows the map, or writes it to a picture."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not 1 <= len(arguments) <= 2:
        raise SystemExit("usage: python -m dig_plugins.ase.adsorption.viewer FILE.traj|.extxyz|.db [PICTURE.png]")
    drawn = figure(arguments[0])
    if len(arguments) == 2:
        drawn.savefig(arguments[1], dpi=150)
        return
    from matplotlib import pyplot

    pyplot.show()


if __name__ == "__main__":
    main()
