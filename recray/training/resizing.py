"""When a group of workers ends before the run does, so that another number of them goes on."""

import time
from collections.abc import Callable
from typing import Literal

from recray.training.shard import Workers

EndReason = Literal["taken", "room"]
"""A node is about to be taken away, or the cluster has room for more workers."""
ASK_EVERY_S = 2.0
"""Seconds between two questions whether a node is about to be taken away."""
GROW_EVERY_S = 30.0
"""Seconds that a group trains at least before it ends in order to grow: a start takes about ten."""


class GroupEnds(Exception):
    """The group is to end here: another one goes on from the checkpoint that was just written."""

    def __init__(self, reason: EndReason) -> None:
        super().__init__(reason)
        self.reason: EndReason = reason


class ResizeWatch:
    """Ends a group where a node is about to be taken away, or where more workers would have room.

    After a notice a checkpoint is written between two steps, so that little is lost. For more
    workers the group ends after an epoch, when a checkpoint is there anyway: with another number
    of workers an epoch begins again.

    Args:
        preempting: Whether a node is about to be taken away. It is a question to the whole group,
            so all workers must ask after the same steps: rank 0's clock decides when next, and
            the others learn it.
        has_room: Whether there is room for more workers; asked by rank 0 alone.
        save: Writes the checkpoint after so many steps.
        workers: The group.
    """

    def __init__(
        self,
        preempting: Callable[[], bool],
        has_room: Callable[[], bool] | None,
        save: Callable[[int], None],
        workers: Workers,
    ) -> None:
        self.preempting, self.has_room, self.save = preempting, has_room, save
        # A step may be a phase of exact solves, which one worker ends much later than another.
        self.workers = workers.with_long_timeout()
        self.wait, self.interval = 1, 1
        self.begun = self.asked = self.agreed = time.monotonic()

    def after_step(self, step: int) -> None:
        """Ask, if it is time; `step` steps of the epoch are done.

        Raises:
            GroupEnds: A node is about to be taken away.
        """
        self.wait -= 1
        if self.wait > 0:
            return
        now = time.monotonic()
        # So many steps took a tenth of ASK_EVERY_S at the speed since the last agreement: a machine
        # that becomes ten times slower meanwhile is still asked in time.
        steps = self.interval * ASK_EVERY_S / 10 / max(now - self.agreed, 1e-6)
        plan = (float(min(max(int(steps), 1), 2 * self.interval)), float(self._due(now)))
        wait, due = self.workers.sum_floats(*(plan if self.workers.rank == 0 else (0.0, 0.0)))
        self.wait = self.interval = int(wait)
        self.agreed = now
        if due and self._taken():
            self.save(step)
            raise GroupEnds("taken")

    def _due(self, now: float) -> bool:
        return now - self.asked >= ASK_EVERY_S

    def _taken(self) -> bool:
        """Ask the group; all workers do so at once."""
        self.asked = time.monotonic()
        return self.preempting()

    def after_epoch(self) -> None:
        """Ask, if it is time; the checkpoint of the epoch is written.

        Raises:
            GroupEnds: A node is about to be taken away, or there is room for more workers.
        """
        group, now = self.workers, time.monotonic()
        ask = grow = False
        if group.rank == 0:
            ask = self._due(now)
            grow = self.has_room is not None and now - self.begun >= GROW_EVERY_S
        asks, grows = group.sum_floats(float(ask), float(grow))
        if asks and self._taken():
            raise GroupEnds("taken")
        if grows:
            self.begun = now  # the next question, where the answer is no
            room = group.rank == 0 and self.has_room is not None and self.has_room()
            if group.sum_floats(float(room))[0]:
                raise GroupEnds("room")
