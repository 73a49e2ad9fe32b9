"""How workers add up gradients of item rows: the whole table, or the rows that any has touched."""

# Shape letters: N = rows touched by this worker, M = by any worker, C = columns.

from collections.abc import Callable

import torch
from torch import Tensor

from recray.models.batch_embedding import UniqueIds
from recray.training.collectives import Workers

Summed = Callable[[], tuple[Tensor, Tensor]]
"""Waits for the exchange; gives (M,) ids, ascending, and the (M, C) sums of their rows."""


class RowExchange:
    """Sums of rows over workers, by whichever way moves fewer bytes.

    Args:
        rows: Rows of the table.
        columns: Columns C of a row.
        most: Rows that one worker touches in a step at most.
        workers: The group.
    """

    def __init__(self, rows: int, columns: int, most: int, workers: Workers) -> None:
        self.rows, self.columns, self.workers = rows, columns, workers
        self.most = min(most, rows)
        others = workers.size - 1
        # A ring passes each row twice; gathering brings the rows of all others, and where that is
        # as many, they must still be combined.
        dense, touched = 2 * others / workers.size * rows, others * self.most
        self.dense = dense <= touched
        self.received = min(dense, touched) * (columns + 1)
        """Numbers that a worker receives in a step."""

    def begin(self, ids: Tensor, rows: Tensor) -> Summed:
        """Start to add up the (N, C) rows of the (N,) ids, each of which occurs once."""
        return self._begin_dense(ids, rows) if self.dense else self._begin_touched(ids, rows)

    def _begin_dense(self, ids: Tensor, rows: Tensor) -> Summed:
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

    def _begin_touched(self, ids: Tensor, rows: Tensor) -> Summed:
        # One message: ids travel as numbers of the rows' own width, bit by bit.
        numbers = torch.int64 if rows.dtype == torch.float64 else torch.int32
        message = rows.new_zeros(self.most * (self.columns + 1))
        named, values = message[: self.most], message[self.most :].view(self.most, self.columns)
        named.view(numbers).fill_(-1)[: len(ids)] = ids
        values[: len(ids)] = rows
        wait, gathered = self.workers.begin_gather(message)

        def summed() -> tuple[Tensor, Tensor]:
            wait()
            of_worker = [part[: self.most].view(numbers) for part in gathered]
            counts = [int((part >= 0).sum()) for part in of_worker]
            several = list(zip(of_worker, gathered, counts, strict=True))
            every = torch.cat([part[:count].long() for part, _, count in several])
            table = [
                part[self.most :].view(self.most, self.columns)[:count]
                for _, part, count in several
            ]
            touched = UniqueIds.of(every)
            return touched.ids, touched.combine(torch.cat(table))

        return summed
