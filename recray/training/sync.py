"""What workers do together. The loop sees only this, so that it runs without any cluster."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Workers:
    """One worker's view of the group; a group of one needs no process group.

    Args:
        rank: This worker's number, 0..size-1.
        size: Number of workers.
    """

    rank: int = 0
    size: int = 1

    def sum(self, value: Tensor) -> Tensor:
        """The sum of the tensor over all workers, the same on each; in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def sum_floats(self, *values: float) -> list[float]:
        """Sums of a few numbers over all workers, in float64."""
        total: list[float] = self.sum(torch.tensor(values, dtype=torch.float64)).tolist()
        return total

    def barrier(self) -> None:
        """Wait until every worker is here."""
        if self.size > 1:
            dist.barrier()
