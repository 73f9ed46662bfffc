"""A device that is not there: tensors marked as far, which refuse to meet those that are near, as a GPU's refuse the processor's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["FarDevice", "carried"]

FAR = torch.device("cuda", 0)
# Far tensors take near indices, as PyTorch's do; near ones take nothing that is far.
_LENIENT = {"__getitem__", "__setitem__", "index_put_", "__get__"}


class Far(Tensor):
    """A tensor that says it is on the far device; its numbers are here."""


class FarDevice(TorchFunctionMode):
    """While it is entered, far tensors and near ones part: an operation on both raises RuntimeError, unless PyTorch's own would not."""

    def __torch_function__(self, function, types, args=(), kwargs=None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if name == "__get__" and getattr(function, "__self__", None) is Tensor.device:
            return FAR if isinstance(args[0], Far) else torch.device("cpu")
        found = list(_tensors([args, kwargs]))
        goes = any(isinstance(x, Far) for x in found)
        if name == "to":
            places = [x for x in [*args[1:], *kwargs.values()] if isinstance(x, Tensor | torch.device | str)]
            goes = _is_far(places[0]) if places else goes
            args = tuple("cpu" if isinstance(x, torch.device | str) else x for x in args)
            kwargs |= {"device": "cpu"} if "device" in kwargs else {}
        elif name in ("cpu", "copy_"):
            goes = name == "copy_" and isinstance(args[0], Far)
        elif kwargs.get("device") is not None:
            goes, kwargs["device"] = _is_far(kwargs["device"]), "cpu"
        elif goes and any(x.dim() > 0 and not isinstance(x, Far) for x in found[: 1 if name in _LENIENT else None]):
            raise RuntimeError(f"{name} of far and near tensors of shapes {[tuple(x.shape) for x in found]}")
        return _marked(function(*_plain(args), **_plain(kwargs)), goes)


def carried(module: nn.Module) -> nn.Module:
    """``module`` with all parameters and buffers on the far device, in place."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, x in held.items():
                held[name] = None if x is None else x.detach().as_subclass(Far)
    return module


def _is_far(place: Tensor | torch.device | str) -> bool:
    return isinstance(place, Far) if isinstance(place, Tensor) else torch.device(place).type == FAR.type


def _tensors(x: Any):
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, list | tuple):
        for part in x:
            yield from _tensors(part)
    elif isinstance(x, dict):
        yield from _tensors(list(x.values()))


def _plain(x: Any) -> Any:
    if isinstance(x, Far):
        return x.as_subclass(Tensor)
    if type(x) in (tuple, list):
        return type(x)(_plain(part) for part in x)
    return {key: _plain(part) for key, part in x.items()} if isinstance(x, dict) else x


def _marked(x: Any, far: bool) -> Any:
    if isinstance(x, Tensor):
        return x.as_subclass(Far if far else Tensor)
    if isinstance(x, list | tuple):
        parts = [_marked(part, far) for part in x]
        # Results with names, such as torch.return_types.max, are made of one sequence as well.
        return type(x)(parts)
    return x
