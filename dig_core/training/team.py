"""One training on several processes: each takes its rows of every batch, and the gradients are averaged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from ..errors import IncompatibleError

__all__ = ["Team", "launched", "own_rows", "team_of"]


class Team(NamedTuple):
    """Process ``rank`` of ``size`` that train one model on ``device``; a process by itself is 0 of 1."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def agreed(self, seed: int) -> int:
        """The leader's ``seed``: with seeds of their own, processes would take rows of unlike batches."""
        if self.size == 1:
            return seed
        held = torch.tensor(seed, dtype=torch.int64, device=self.device)
        distributed.broadcast(held, 0)
        return int(held)

    def gather(self, model: nn.Module, step: int) -> None:
        """Give all processes the leader's weights. IncompatibleError if they have not all done the same ``step`` s."""
        if self.size == 1:
            return
        bounds = torch.tensor([step, -step], dtype=torch.int64, device=self.device)
        distributed.all_reduce(bounds, distributed.ReduceOp.MAX)
        most, least = int(bounds[0]), -int(bounds[1])
        if most != least:
            raise IncompatibleError(f"the processes begin at steps {least} to {most}: give all the same directory, on a shared disk.")
        for value in model.state_dict().values():
            distributed.broadcast(value, 0)

    def average(self, parameters: list[nn.Parameter], losses: Tensor) -> Tensor:
        """``losses`` averaged over the team, and in place the gradients of ``parameters``."""
        if self.size == 1:
            return losses
        gradients = [p.grad for p in parameters if p.grad is not None]
        parts = [*gradients, losses]
        flat = torch.cat([part.flatten() for part in parts])
        distributed.all_reduce(flat)
        flat /= self.size
        found = [x.view_as(part) for x, part in zip(flat.split([part.numel() for part in parts]), parts, strict=True)]
        for gradient, mean in zip(gradients, found[:-1], strict=True):
            gradient.copy_(mean)
        return found[-1]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set for anyone of the team."""
        if self.size == 1:
            return flag
        raised = torch.tensor(int(flag), device=self.device)
        distributed.all_reduce(raised, distributed.ReduceOp.MAX)
        return bool(raised)


@contextmanager
def launched(device: str = "cpu") -> Iterator[torch.device]:
    """Within, the processes that ``torchrun`` started are a team (gloo on processors, nccl on GPUs); a process by itself stays alone.

    Yields where this one's model belongs: ``device``, for ``"cuda"`` a GPU of its own.
    """
    place = torch.device(device)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield place
        return
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield place
    finally:
        distributed.destroy_process_group()


def team_of(model: nn.Module) -> Team:
    """The processes of ``torch.distributed`` where it is initialised, as :func:`launched` does; one process otherwise."""
    return Team(*_place(), next(model.parameters()).device)


def own_rows(n: int) -> tuple[slice, float]:
    """Which of ``n`` rows this process takes, and by what its mean over them is multiplied to average to that over all.

    Raises IncompatibleError for fewer rows than processes.
    """
    rank, size = _place()
    if n < size:
        raise IncompatibleError(f"a batch of {n} cannot be shared by {size} processes: train with a larger batch, or fewer of them.")
    low, high = rank * n // size, (rank + 1) * n // size
    return slice(low, high), (high - low) * size / n


def _place() -> tuple[int, int]:
    """Rank and size."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()
