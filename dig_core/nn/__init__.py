"""The network: the Graphormer encoder, the heads that read it, and the networks that score models are built from."""

from .adsorption import AdsorptionGraphormer
from .committee import Committee
from .conformer import ConformerGraphormer
from .crystal import CrystalGraphormer
from .graphormer import Graphormer
from .heads import CoordinateHead, VectorHead
from .mlp import ResidualMLP, ScalarMLP
from .networks import CartesianGraphormer, InternalGraphormer
from .pose import PoseGraphormer
from .protein import BackboneGraphormer

__all__ = [
    "NETWORKS", "AdsorptionGraphormer", "BackboneGraphormer", "CartesianGraphormer", "Committee", "ConformerGraphormer",
    "CoordinateHead", "CrystalGraphormer", "Graphormer", "InternalGraphormer", "PoseGraphormer", "ResidualMLP", "ScalarMLP", "VectorHead",
]  # fmt: skip

NETWORKS = {
    cls.__name__: cls
    for cls in (
        AdsorptionGraphormer, BackboneGraphormer, Committee, ConformerGraphormer, CrystalGraphormer, ResidualMLP, ScalarMLP,
        CartesianGraphormer, InternalGraphormer, PoseGraphormer,
    )
}
