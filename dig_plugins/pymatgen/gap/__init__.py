"""Band gaps of carbon crystals: by tight binding and learned, torch functions of the structure, and by plane waves, to judge those.

Guide with one and judge by another. None needs pymatgen. The tight-binding table has a licence of its own (mio-1-1/README.md).
"""

from .dftb import PBE, Calibration, TightBindingGap
from .learned import LearnedGap
from .planewave import PlaneWaveGap

__all__ = ["PBE", "Calibration", "LearnedGap", "PlaneWaveGap", "TightBindingGap"]
