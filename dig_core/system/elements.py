"""Properties of the chemical elements that a network can carry over to one it has not seen: place in the table, size, electronegativity."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UnsupportedError

__all__ = ["N_D_BAND", "N_PROPERTIES", "covalent_radii", "d_band", "properties"]

# Angstrom, hydrogen to plutonium (Cordero et al., doi:10.1039/b801115j).
_RADII = (
    0.31, 0.28, 1.28, 0.96, 0.84, 0.76, 0.71, 0.66, 0.57, 0.58, 1.66, 1.41, 1.21, 1.11, 1.07, 1.05, 1.02, 1.06, 2.03,
    1.76, 1.70, 1.60, 1.53, 1.39, 1.39, 1.32, 1.26, 1.24, 1.32, 1.22, 1.22, 1.20, 1.19, 1.20, 1.20, 1.16, 2.20, 1.95,
    1.90, 1.75, 1.64, 1.54, 1.47, 1.46, 1.42, 1.39, 1.45, 1.44, 1.42, 1.39, 1.39, 1.38, 1.39, 1.40, 2.44, 2.15, 2.07,
    2.04, 2.03, 2.01, 1.99, 1.98, 1.98, 1.96, 1.94, 1.92, 1.92, 1.89, 1.90, 1.87, 1.87, 1.75, 1.70, 1.62, 1.51, 1.44,
    1.41, 1.36, 1.36, 1.32, 1.45, 1.46, 1.48, 1.40, 1.50, 1.50, 2.60, 2.21, 2.15, 2.06, 2.00, 1.96, 1.90, 1.87,
)  # fmt: skip

# Pauling's scale; 0 where there is none (CRC Handbook of Chemistry and Physics).
_ELECTRONEGATIVITY = (
    2.20, 0, 0.98, 1.57, 2.04, 2.55, 3.04, 3.44, 3.98, 0, 0.93, 1.31, 1.61, 1.90, 2.19, 2.58, 3.16, 0, 0.82, 1.00,
    1.36, 1.54, 1.63, 1.66, 1.55, 1.83, 1.88, 1.91, 1.90, 1.65, 1.81, 2.01, 2.18, 2.55, 2.96, 3.00, 0.82, 0.95, 1.22,
    1.33, 1.60, 2.16, 1.90, 2.20, 2.28, 2.20, 1.93, 1.69, 1.78, 1.96, 2.05, 2.10, 2.66, 2.60, 0.79, 0.89, 1.10, 1.12,
    1.13, 1.14, 1.13, 1.17, 1.20, 1.20, 1.10, 1.22, 1.23, 1.24, 1.25, 1.10, 1.27, 1.30, 1.50, 2.36, 1.90, 2.20, 2.20,
    2.28, 2.54, 2.00, 1.62, 2.33, 2.02, 2.00, 2.20, 2.20, 0.70, 0.90, 1.10, 1.30, 1.50, 1.38, 1.36, 1.28,
)  # fmt: skip

# Late transition metals: group; centre of the d band of the close-packed surface, eV from the Fermi level; squared coupling to an
# adsorbate's states, relative to copper's (Ruban, Hammer, Stoltze, Skriver and Norskov, doi:10.1016/S1381-1169(96)00348-2).
_D_BAND = {
    27: (9, -1.17, 1.34), 28: (10, -1.29, 1.16), 29: (11, -2.67, 1.00), 44: (8, -1.41, 3.87), 45: (9, -1.73, 3.32), 46: (10, -1.83, 2.78),
    47: (11, -4.30, 2.26), 77: (9, -2.11, 4.45), 78: (10, -2.25, 3.90), 79: (11, -3.56, 3.35),
}  # fmt: skip

_NOBLE = (0, 2, 10, 18, 36, 54, 86, 118)
N_PROPERTIES = 5
N_D_BAND = 3


def covalent_radii(numbers: Tensor) -> Tensor:
    """(...,) Angstrom of atomic numbers; raises UnsupportedError beyond plutonium."""
    return _TABLE_OF_RADII[_checked(numbers)]


def properties(numbers: Tensor) -> Tensor:
    """(..., 5) of atomic numbers, each about between -1 and 1; zero for 0, which is padding.

    Columns: group (the f elements stand with group 3), period, electronegativity, covalent radius, share of the period filled.
    Raises UnsupportedError beyond plutonium.
    """
    return _TABLE[_checked(numbers)]


def d_band(numbers: Tensor) -> Tensor:
    """(..., 3) of late transition metals, each about between -2 and 2: what the d-band model of adsorption reads of a metal.

    Columns: group less 10; centre of the surface's d band, eV above -2.5; squared coupling less 3, in copper's.
    Raises UnsupportedError for other elements.
    """
    numbers = _checked(numbers)
    found = _TABLE_OF_D_BANDS.to(numbers.device)[numbers]
    if bool(found.isnan().any()):
        wrong = sorted(set(numbers.flatten().tolist()) - set(_D_BAND))
        raise UnsupportedError(f"expected metals with a known d band, atomic numbers {sorted(_D_BAND)}, got {wrong}: use adsorb-general.")
    return found


def _row(z: int) -> list[float]:
    period = next(p for p, last in enumerate(_NOBLE) if z <= last)
    place, length = z - _NOBLE[period - 1], _NOBLE[period] - _NOBLE[period - 1]
    group = place if place <= 2 else max(3, place + 18 - length)
    group = 18 if place == length else group
    return [(group - 9.5) / 8.5, (period - 4) / 3, (_ELECTRONEGATIVITY[z - 1] - 2.0) / 2, _RADII[z - 1] - 1.3, 2 * place / length - 1]


def _checked(numbers: Tensor) -> Tensor:
    numbers = torch.as_tensor(numbers, dtype=torch.long)
    if bool(((numbers < 0) | (numbers > len(_RADII))).any()):
        raise UnsupportedError(f"expected atomic numbers 0 to {len(_RADII)}, got {int(numbers.min())} to {int(numbers.max())}.")
    return numbers


# Made on import: a tensor that is first made inside a function transform belongs to it.
_TABLE_OF_RADII = torch.tensor([0.0, *_RADII], dtype=torch.float64)
_TABLE = torch.tensor([[0.0] * N_PROPERTIES, *(_row(z) for z in range(1, len(_RADII) + 1))], dtype=torch.float64)
_TABLE_OF_D_BANDS = torch.full((len(_RADII) + 1, N_D_BAND), torch.nan, dtype=torch.float64)
for _z, (_group, _centre, _coupling) in _D_BAND.items():
    _TABLE_OF_D_BANDS[_z] = torch.tensor([_group - 10, _centre + 2.5, _coupling - 3])
