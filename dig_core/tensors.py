"""Named tensors in one safetensors file with words about them: read back as written, or an error. Nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from .errors import CheckpointError
from .files import write_atomically

__all__ = ["from_bytes", "read_tensors", "to_bytes", "write_tensors"]

_DIGEST = "sha256"


def to_bytes(tensors: dict[str, Tensor], **about: str) -> bytes:
    """``tensors`` and ``about`` as the content of a safetensors file, with a digest of both."""
    # Copies: safetensors refuses tensors that share memory.
    held = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    return _sorted(to_safetensors(held, metadata={**about, _DIGEST: _digest(held, about)}))


def _sorted(content: bytes) -> bytes:
    """The file with its words in order: safetensors writes them in any, and what is equal is to be the same file."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def from_bytes(content: bytes, name: str | Path, *, signed: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What :func:`to_bytes` was given. Files without a digest, of other programs say, are taken as they are unless ``signed`` asks for one.

    Raises CheckpointError, which calls the content ``name``, if it is damaged.
    """
    try:
        # safetensors gives them in any order, another at every call.
        tensors = dict(sorted(from_safetensors(content).items()))
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{name} is not a readable checkpoint ({error}): it is damaged or truncated, get it again.") from error
    about = header.get("__metadata__", {})
    digest = about.pop(_DIGEST, None)
    # A digest under another name is that of a file whose words are damaged.
    missing = digest is None and (signed or any(re.fullmatch("[0-9a-f]{64}", word) for word in about.values()))
    if missing or (digest is not None and digest != _digest(tensors, about)):
        raise CheckpointError(f"{name} is not what was written (its sha256 differs): it is damaged or was edited, get it again.")
    return tensors, about


def write_tensors(path: Path, tensors: dict[str, Tensor], **about: str) -> None:
    """One file, complete or not there."""
    write_atomically(path, to_bytes(tensors, **about))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What :func:`write_tensors` was given. Raises CheckpointError if it is damaged, OSError if it is missing."""
    return from_bytes(path.read_bytes(), path, signed=True)


def _digest(tensors: dict[str, Tensor], about: dict[str, str]) -> str:
    """Of names, types, shapes, numbers and words; not of how a version of safetensors lays them out."""
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        x = tensors[name].contiguous()
        found.update(json.dumps([name, str(x.dtype), list(x.shape)]).encode())
        found.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
