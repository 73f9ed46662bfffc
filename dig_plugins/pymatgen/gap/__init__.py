"""Band gaps of carbon crystals as torch functions of the structure, two that differ: by tight binding, and learned.

Guide with one and judge by the other. Neither needs pymatgen. The tight-binding table has a licence of its own (mio-1-1/README.md).
"""

from .dftb import PBE, Calibration, TightBindingGap
from .learned import LearnedGap

__all__ = ["PBE", "Calibration", "LearnedGap", "TightBindingGap"]
