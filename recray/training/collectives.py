"""What workers do together: sums of tensors, and sums of the rows that they have touched.

The training loop knows a cluster through this module alone, so it runs without any cluster.
"""

# Shape letters: N = rows touched by this worker, M = by any worker, C = columns.

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from recray.errors import WorkerLost
from recray.models.base import UniqueIds

TIMEOUT_S = 60.0
"""How long a worker waits for the others in a step before it says that one is lost."""
LONG_TIMEOUT_S = 1800.0
"""The same after work that may take one worker longer than another: reading, validation, saving."""
PendingSum = Callable[[], tuple[Tensor, Tensor]]
"""Waits for the workers; returns (M,) ids, ascending, and the (M, C) sums of their rows."""


@dataclass(frozen=True)
class Workers:
    """One worker's view of the group; a group of one needs no process group.

    Args:
        rank: This worker's number, 0..size-1.
        size: Number of workers.
        timeout: Seconds to wait for the others; the process group's own timeout is no shorter.
    """

    rank: int = 0
    size: int = 1
    timeout: float = TIMEOUT_S

    def with_long_timeout(self) -> Self:
        """The same group, waiting longer: for what follows work of unequal length."""
        return replace(self, timeout=max(self.timeout, LONG_TIMEOUT_S))

    def sum(self, value: Tensor) -> Tensor:
        """Sum the tensor over all workers, in place; the result is the same on each.

        Raises:
            WorkerLost: Another worker has gone, or has not answered in time.
        """
        if self.size > 1:
            self._wait(lambda: dist.all_reduce(value, async_op=True))
        return value

    def begin_sum(self, value: Tensor) -> Callable[[], object]:
        """Start to sum the tensor over all workers, in place; what is returned waits for it."""
        work = dist.all_reduce(value, async_op=True)
        return lambda: self._wait(lambda: work)

    def begin_gather(self, value: Tensor) -> tuple[Callable[[], object], Tensor]:
        """Start to collect a tensor of every worker; their shapes are equal.

        Returns:
            A function that waits for them, and where they will be: one row for each worker.
        """
        gathered = value.new_empty(self.size, *value.shape)
        work = dist.all_gather(list(gathered.unbind(dim=0)), value, async_op=True)
        return (lambda: self._wait(lambda: work)), gathered

    def sum_floats(self, *values: float) -> list[float]:
        """Sum a few numbers over all workers, in float64."""
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
                work.wait(timedelta(seconds=self.timeout))
        except RuntimeError as error:  # whatever the backend says: gone, refused, timed out
            raise WorkerLost(
                f"worker {self.rank} of {self.size} (from 0) waited for another that died or has "
                f"not answered for {self.timeout:g} s ({str(error).strip().splitlines()[-1]})"
            ) from error


class SparseAllReduce:
    """Sums rows over workers, in whichever way moves fewer bytes.

    The dense way sums the whole table. The sparse way gathers the touched rows of all workers.

    Args:
        rows: Rows of the table.
        columns: Columns C of a row.
        max_touched: Most rows that one worker touches in a step.
        workers: The group.
    """

    def __init__(self, rows: int, columns: int, max_touched: int, workers: Workers) -> None:
        self.rows, self.columns, self.workers = rows, columns, workers
        self.max_touched = min(max_touched, rows)
        others = workers.size - 1
        # A ring passes each row twice; gathering brings the rows of all others, and where that is
        # as many, they must still be combined.
        dense, touched = 2 * others / workers.size * rows, others * self.max_touched
        self.dense = dense <= touched
        self.received = min(dense, touched) * (columns + 1)
        """Numbers that a worker receives in a step."""

    def begin(self, ids: Tensor, rows: Tensor) -> PendingSum:
        """Start to sum the (N, C) rows of the (N,) ids, each of which occurs once."""
        return self._begin_dense(ids, rows) if self.dense else self._begin_sparse(ids, rows)

    def _begin_dense(self, ids: Tensor, rows: Tensor) -> PendingSum:
        # One message: the table, then how many workers have touched each row.
        message = rows.new_zeros(self.rows * (self.columns + 1))
        values, touches = message.split([self.rows * self.columns, self.rows])
        table = values.view(self.rows, self.columns)
        table.index_copy_(0, ids, rows)
        touches.index_fill_(0, ids, 1.0)
        wait = self.workers.begin_sum(message)

        def summed() -> tuple[Tensor, Tensor]:
            wait()
            touched = torch.nonzero(touches)[:, 0]
            return touched, table.index_select(0, touched)

        return summed

    def _begin_sparse(self, ids: Tensor, rows: Tensor) -> PendingSum:
        # One message: the bits of an integer id travel as a float of the same width.
        numbers = torch.int64 if rows.dtype == torch.float64 else torch.int32
        message = rows.new_zeros(self.max_touched * (self.columns + 1))
        id_bits, values = (
            message[: self.max_touched],
            message[self.max_touched :].view(self.max_touched, self.columns),
        )
        id_bits.view(numbers).fill_(-1)[: len(ids)] = ids
        values[: len(ids)] = rows
        wait, gathered = self.workers.begin_gather(message)

        def summed() -> tuple[Tensor, Tensor]:
            wait()
            of_worker = [part[: self.max_touched].view(numbers) for part in gathered]
            counts = [int((part >= 0).sum()) for part in of_worker]
            several = list(zip(of_worker, gathered, counts, strict=True))
            every = torch.cat([part[:count].long() for part, _, count in several])
            table = [
                part[self.max_touched :].view(self.max_touched, self.columns)[:count]
                for _, part, count in several
            ]
            touched = UniqueIds.of(every)
            return touched.ids, touched.combine(torch.cat(table))

        return summed
