"""Band gaps of carbon crystals as torch functions of the structure, by tight binding, learned, and by plane waves to judge the others.

Guide with one and judge by the other. Neither needs pymatgen. The tight-binding table has a licence of its own (mio-1-1/README.md).
"""

from .dftb import PBE, Calibration, TightBindingGap
from .learned import LearnedGap
from .planewave import PlaneWaveGap

__all__ = ["PBE", "Calibration", "LearnedGap", "PlaneWaveGap", "TightBindingGap"]
