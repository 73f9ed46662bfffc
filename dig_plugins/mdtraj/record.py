"""What a record (``run.json``) says of the model, the protein and the software that something was made with."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from dig_core.dig import DiG
from dig_core.system.descriptor import Descriptor
from dig_core.system.protein import RESIDUES, protein, residues

from .. import record

__all__ = ["of_model", "of_protein", "of_software", "protein_of"]


def of_model(dig: DiG) -> dict:
    """Name, SHA-256 of the parameters (empty for models that have none), temperature."""
    return {"model": dig.card.name, "model_sha256": _digest(dig.model), "temperature_K": dig.card.temperature}


def of_protein(descriptor: Descriptor) -> dict:
    """Sequence, residue numbers and chains; numbers as words, since JSON gives each of a list a line of its own."""
    known = residues(descriptor)
    letters = "".join(RESIDUES[kind] for kind in known.kind.tolist())
    return {"sequence": letters, "numbers": _words(known.number), "chains": _words(known.chain)}


def protein_of(held: dict) -> Descriptor:
    """The protein of a record, without reference and embeddings."""
    numbers, chains = ([int(word) for word in held[name].split()] for name in ("numbers", "chains"))
    return protein(held["sequence"], numbers=numbers, chains=chains)


def of_software() -> dict:
    """The command, and versions of what it runs on."""
    return record.of_software("mdtraj")


def _words(numbers: Tensor) -> str:
    return " ".join(str(number) for number in numbers.tolist())


def _digest(model) -> str:
    if not isinstance(model, nn.Module):
        return ""
    found = hashlib.sha256()
    for name, x in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
