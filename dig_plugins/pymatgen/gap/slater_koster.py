"""Two-centre integrals of carbon from a Slater-Koster file, splined, and the 4 x 4 blocks of s and p orbitals they make."""

from __future__ import annotations

from importlib import resources

import torch
from torch import Tensor, nn

from dig_core.errors import IncompatibleError

__all__ = ["SlaterKoster", "carbon_table"]

# Files are in atomic units (CODATA 2018).
_BOHR, _HARTREE = 0.529177210903, 27.211386245988
# Columns of a row: H of dd0 dd1 dd2 pd0 pd1 pp0 pp1 sd0 sp0 ss0, then S of the same.
_COLUMNS = {"ss": 9, "sp": 8, "pp_sigma": 5, "pp_pi": 6}
_HEADER = 3  # grid, on-site energies, mass
_TAPER = 1.0  # bohr at the end of the table over which integrals go to zero


def carbon_table() -> str:
    """Text of the C-C table of the set mio-1-1 (Elstner et al., doi:10.1103/PhysRevB.58.7260), CC-BY-SA-4.0."""
    return (resources.files(__package__) / "mio-1-1" / "C-C.skf").read_text(encoding="utf-8")


class SlaterKoster(nn.Module):
    """Hamiltonian (eV) and overlap between the s and p orbitals of two equal atoms, by their distance.

    ``text``: a homonuclear file in the format of dftb.org (Slater-Koster file format, 2014). ``start`` and ``reach``,
    Angstrom, bound the table. Cubic splines with continuous second derivatives; over the last bohr of the table the
    integrals (1 meV there) are tapered to zero, so that atoms enter the cutoff without a jump.
    """

    coefficients: Tensor
    onsite: Tensor

    def __init__(self, text: str):
        super().__init__()
        rows = [_numbers(line) for line in text.split("Spline")[0].splitlines() if line.strip()]
        spacing, energies, table = rows[0][0], rows[1], rows[_HEADER:]
        if len(energies) < 3 or any(len(row) != 20 for row in table):
            raise IncompatibleError("expected a homonuclear Slater-Koster file: grid, on-site energies, mass, then rows of 20 integrals.")
        # Rows before the first distance that was computed hold a constant.
        skipped = next(k for k, row in enumerate(table) if len(set(row)) > 1)
        values = torch.tensor(table[skipped:], dtype=torch.float64)
        columns = list(_COLUMNS.values())
        values = torch.cat([_HARTREE * values[:, columns], values[:, [10 + c for c in columns]]], 1)
        self.step, self.start = spacing * _BOHR, (skipped + 1) * spacing * _BOHR
        self.reach = self.start + (len(values) - 1) * self.step
        self.register_buffer("coefficients", _spline(values), persistent=False)
        # On-site energies come as d, p, s.
        s, p = _HARTREE * energies[2], _HARTREE * energies[1]
        self.register_buffer("onsite", torch.tensor([s, p, p, p], dtype=torch.float64), persistent=False)

    def integrals(self, distance: Tensor) -> Tensor:
        """(..., 8) of distances (...) Angstrom: H of ss, sp, pp-sigma, pp-pi in eV, then S; NaN-free from ``start`` on."""
        place = (distance - self.start) / self.step
        cell = place.detach().floor().long().clamp(0, len(self.coefficients) - 1)
        x = (place - cell)[..., None]
        a, b, c, d = self.coefficients[cell].unbind(-2)
        u = ((self.reach - distance) / (_TAPER * _BOHR)).clamp(0.0, 1.0)[..., None]
        return (a + x * (b + x * (c + x * d))) * u**3 * (10 - 15 * u + 6 * u**2)

    def blocks(self, vectors: Tensor) -> Tensor:
        """(E, 2, 4, 4), H in eV and S, of pairs whose second atom stands at ``vectors`` (E, 3) Angstrom from the first."""
        distance = vectors.norm(dim=-1)
        unit = vectors / distance[:, None]
        ss, sp, sigma, pi = self.integrals(distance).view(-1, 2, 4).unbind(-1)
        along = sp[..., None] * unit[:, None]
        square = unit[:, None, :, None] * unit[:, None, None, :]
        p = (sigma - pi)[..., None, None] * square + pi[..., None, None] * torch.eye(3).to(unit)
        top = torch.cat([ss[..., None, None], along[..., None, :]], -1)
        return torch.cat([top, torch.cat([-along[..., None], p], -1)], -2)


def _numbers(line: str) -> list[float]:
    """Numbers of a line in which ``5*0.0`` stands for five zeros and commas for spaces."""
    found: list[float] = []
    for word in line.replace(",", " ").split():
        count, star, value = word.partition("*")
        found += [float(value)] * int(count) if star else [float(word)]
    return found


def _spline(values: Tensor) -> Tensor:
    """(n - 1, 4, c) coefficients, per step, of the natural cubic spline through values (n, c) one step apart."""
    n = len(values)
    beside = torch.diag(torch.ones(n - 1).to(values), 1)
    system = 4 * torch.eye(n).to(values) + beside + beside.T
    system[[0, -1]] = 0
    system[0, 0] = system[-1, -1] = 1
    bend = torch.zeros_like(values)
    bend[1:-1] = 6 * (values[2:] - 2 * values[1:-1] + values[:-2])
    second = torch.linalg.solve(system, bend)
    slope = values.diff(dim=0) - (2 * second[:-1] + second[1:]) / 6
    return torch.stack([values[:-1], slope, second[:-1] / 2, second.diff(dim=0) / 6], 1)
