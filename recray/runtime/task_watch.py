"""How many tasks of a data set of Ray Data have ended, while they run."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from recray.runtime.ray_private import TASK_WATCHES, find

if TYPE_CHECKING:
    from ray.data import Dataset

LOOK_S = 0.2
"""Nobody looks more often."""


def watch_tasks(dataset: "Dataset", told: Callable[[int], None]) -> None:
    """Tell a function how many tasks of a data set have ended, while Ray Data runs them.

    Where results can be taken as they come, that is the simpler way; a Datasink gets all of them
    at the end. Ray Data has callbacks for the turns of its loop and does not document them.
    """
    if find(TASK_WATCHES, "nothing moves on the terminal while partitions are written"):
        context: Any = dataset.context
        others = context.custom_execution_callback_classes
        context.custom_execution_callback_classes = [*others, _TaskWatch(told)]


class _TaskWatch:
    """What Ray Data calls in each turn of its loop.

    Ray Data expects a class and makes one of it for each execution; it copies it with the context
    of the data set, and sends it with that to the workers, where nobody is told.
    """

    def __init__(self, told: Callable[[int], None] = lambda _ended: None) -> None:
        self.told, self.next_s = told, 0.0

    def __call__(self) -> "_TaskWatch":
        return self

    def __deepcopy__(self, _memo: object) -> "_TaskWatch":
        return self

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _TaskWatch, ()

    def on_execution_step(self, executor: Any) -> None:
        """Say how many tasks have ended."""
        if time.monotonic() >= self.next_s:
            self.next_s = time.monotonic() + LOOK_S
            self.told(executor.get_stats().extra_metrics.get("num_tasks_finished", 0))

    def before_execution_starts(self, _executor: object) -> None:
        """Nothing has ended yet."""

    def after_execution_succeeds(self, _executor: object) -> None:
        """Whoever runs the tasks learns it."""

    def after_execution_fails(self, _executor: object, _error: Exception) -> None:
        """Whoever runs the tasks gets the error."""
