"""Ligands in pockets: pockets from PDB files, poses with probabilities, MMFF94 in a pocket, checks of poses."""
