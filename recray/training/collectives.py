"""Sums over workers of the rows that each of them has touched."""

# Shape letters: N = rows touched by this worker, M = by any worker, C = columns.

from collections.abc import Callable

import torch
from torch import Tensor

from recray.models.batches import UniqueIds
from recray.training.shard import Workers

PendingSum = Callable[[], tuple[Tensor, Tensor]]
"""Waits for the workers; returns (M,) ids, ascending, and the (M, C) sums of their rows."""


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
