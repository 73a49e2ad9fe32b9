"""What workers do together. The loop sees only this, so that it runs without any cluster."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from recray.errors import WorkerLost

PATIENCE_S = 60.0
"""How long a worker waits for the others in a step before it says that one is lost."""
SLOW_PATIENCE_S = 1800.0
"""The same after work that may take one worker longer than another: reading, validation, saving."""


@dataclass(frozen=True)
class Workers:
    """One worker's view of the group; a group of one needs no process group.

    Args:
        rank: This worker's number, 0..size-1.
        size: Number of workers.
        patience: Seconds to wait for the others; the process group's own timeout is no shorter.
    """

    rank: int = 0
    size: int = 1
    patience: float = PATIENCE_S

    def slow(self) -> Self:
        """The same group, waiting longer: for what follows work of unequal length."""
        return replace(self, patience=max(self.patience, SLOW_PATIENCE_S))

    def sum(self, value: Tensor) -> Tensor:
        """The sum of the tensor over all workers, the same on each; in place.

        Raises:
            WorkerLost: Another worker has gone, or has not answered in time.
        """
        if self.size > 1:
            self._wait(lambda: dist.all_reduce(value, async_op=True))
        return value

    def begin_sum(self, value: Tensor) -> Callable[[], object]:
        """Start to add up the tensor over all workers, in place; what is returned waits for it."""
        work = dist.all_reduce(value, async_op=True)
        return lambda: self._wait(lambda: work)

    def begin_gather(self, value: Tensor) -> tuple[Callable[[], object], Tensor]:
        """Start to collect a tensor of every worker, of equal shapes.

        Returns:
            What waits for it, and where they will be: one row for each worker.
        """
        gathered = value.new_empty(self.size, *value.shape)
        work = dist.all_gather(list(gathered.unbind(dim=0)), value, async_op=True)
        return (lambda: self._wait(lambda: work)), gathered

    def sum_floats(self, *values: float) -> list[float]:
        """Sums of a few numbers over all workers, in float64."""
        total: list[float] = self.sum(torch.tensor(values, dtype=torch.float64)).tolist()
        return total

    def barrier(self) -> None:
        """Wait until every worker is here.

        Raises:
            WorkerLost: Another worker has gone, or has not answered in time.
        """
        if self.size > 1:
            self._wait(lambda: dist.barrier(async_op=True))

    def _wait(self, begin: Callable[[], "dist.Work | None"]) -> None:
        try:
            work = begin()
            if work is not None:
                work.wait(timedelta(seconds=self.patience))
        except RuntimeError as error:  # whatever the backend says: gone, refused, timed out
            raise WorkerLost(
                f"worker {self.rank} of {self.size} (from 0) waited for another that died or has "
                f"not answered for {self.patience:g} s ({str(error).strip().splitlines()[-1]})"
            ) from error
