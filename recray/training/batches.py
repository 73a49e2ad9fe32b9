"""Batches from resident tensors: the step plan, shuffling and padding.

The number of steps is fixed before the loop from row counts, and the same on every worker. A worker
with fewer rows pads with rows of weight 0, so nobody ever waits for a batch that another does not
have, and the gradient is that of one worker with all rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from recray.models.batch_embedding import Batch

# Shape letters: B = rows of a worker's batch.


@dataclass(frozen=True)
class StepPlan:
    """How an epoch is cut into steps.

    Args:
        rows: Training rows of each worker.
        batch: Rows of one worker in one step, padding included.
        steps: Steps of every worker.
    """

    rows: tuple[int, ...]
    batch: int
    steps: int

    @classmethod
    def of(cls, rows: tuple[int, ...], batch_size: int | str) -> "StepPlan":
        """Cut an epoch.

        Args:
            rows: Training rows of each worker.
            batch_size: Rows per step over all workers; "all" for one step with every row.
        """
        largest = max(rows)
        batch = largest if batch_size == "all" else -(-int(batch_size) // len(rows))
        batch = max(1, min(batch, largest))
        return cls(rows, batch, -(-largest // batch))

    def real_rows(self, step: int) -> int:
        """Rows of weight 1 that all workers have together in a step."""
        first = step * self.batch
        return sum(min(max(rows - first, 0), self.batch) for rows in self.rows)


def epoch_generator(
    seed: int, epoch: int, rank: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Randomness of one worker in one epoch, a function of nothing else: a resumed run draws the
    same numbers as an unbroken one without any state being kept.
    """
    mixed = (seed * 1_000_003 + epoch) * 1_000_003 + rank
    return torch.Generator(device).manual_seed(mixed % (1 << 63))


def shuffled_batches(
    user: Tensor, item: Tensor, rating: Tensor, plan: StepPlan, generator: torch.Generator
) -> Iterator[Batch]:
    """Yield plan.steps batches of plan.batch rows; every row occurs once.

    Args:
        user: (R,) int64 ids of this worker's rows.
        item: (R,) int64 ids.
        rating: (R,) stars.
        plan: The steps.
        generator: Decides the order.
    """
    rows = len(user)
    order = torch.randperm(rows, generator=generator, device=user.device)
    ones = torch.ones(plan.batch, dtype=rating.dtype, device=user.device)
    for step in range(plan.steps):
        chosen = order[step * plan.batch : (step + 1) * plan.batch]
        valid = len(chosen)
        if valid < plan.batch:
            chosen = torch.cat([chosen, chosen.new_zeros(plan.batch - valid)])
        if rows == 0:
            empty = torch.zeros_like(ones, dtype=torch.int64)
            yield Batch(empty, empty, 0 * ones, 0 * ones, 0)
            continue
        weight = ones
        if valid < plan.batch:
            weight = ones.clone()
            weight[valid:] = 0
        ids = user.index_select(0, chosen), item.index_select(0, chosen)
        yield Batch(*ids, rating.index_select(0, chosen), weight, valid)
