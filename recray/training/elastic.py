"""Groups of workers, one after another, until a run is done: fewer where nodes go, more where
they come.

Ray Train has an elastic policy of its own, which resizes a group in the middle of an epoch. Here a
group ends by itself (resizing.py), after an epoch or after a checkpoint within it, and the next
one, with as many workers as there is room for, goes on from the newest checkpoint.
"""

from dataclasses import dataclass, replace

from recray.errors import NodeTaken, NotPlaced, RecrayError, WorkerLost
from recray.progress import Log
from recray.runtime.nodes import (
    capacity,
    free_workers,
    request_workers,
    require_shared,
    scale_up,
    usable_nodes,
    workers_left,
)
from recray.runtime.worker_range import WorkerRange
from recray.training.checkpoint import RunFolder, TrainState
from recray.training.ray_train import TrainJob, fit, train_worker
from recray.training.run_metadata import RunMetadata

DIGITS = "the digits are not those of an unbroken run"


def first_workers(allowed: WorkerRange, gpus: float) -> int:
    """Workers to begin with: where a range is allowed, as many as there is room for now."""
    if not allowed.is_range:
        return allowed.start
    return max(allowed.start, min(allowed.most, free_workers(gpus)))


@dataclass
class ElasticTraining:
    """Trains a run with one group after another.

    Args:
        job: What every worker is handed.
        folder: The run.
        metadata: What the run is, with the workers of the present group.
        allowed: How many workers it may have.
        log: Receives what happens, one line at a time.
    """

    job: TrainJob
    folder: RunFolder
    metadata: RunMetadata
    allowed: WorkerRange
    log: Log

    def run(self, max_failures: int, local_mode: bool) -> None:
        """Train to the end.

        An error that a worker raises is not tried again: training is exact, so it would come again.

        Args:
            max_failures: How often to begin again from the last checkpoint when a worker is lost.
                A node that is taken away after notice does not count.
            local_mode: Whether one worker trains in this process, where nothing comes or goes.

        Raises:
            WorkerLost: More than max_failures times.
            RecrayError: What the user can fix; there is room for fewer workers than that.
        """
        failures, first = 0, True
        try:
            while True:
                nodes = {node.id for node in usable_nodes()} if not local_mode else set()
                try:
                    if self._fit(local_mode, first):
                        return
                    lost = False
                except WorkerLost as error:
                    if first and isinstance(error, NotPlaced):
                        raise
                    lost = True
                    failures += not isinstance(error, NodeTaken)
                    self._lost(error, failures, max_failures)
                first = False
                self._resize(nodes, lost)
        finally:
            if not local_mode:
                request_workers(self.job.run, 0)

    def _fit(self, local_mode: bool, first: bool) -> bool:
        """Train with one group; returns whether the run is done."""
        workers = 0 if local_mode else self.metadata.workers
        job = replace(self.job, most=max(workers, self.allowed.most if workers else 0))
        if workers:
            request_workers(job.run, job.most - workers, job.gpus)
        starts = 4 if first else 1
        end = fit(train_worker, {"job": job}, self.folder.folder, workers, job.gpus, starts)
        if end is None:
            return True
        why = {"taken": "a node is taken away", "room": "there is room for more workers"}[end]
        self.log(f"train: {why}: a checkpoint {_place(self.folder.train_state(check=False))}")
        return False

    def _lost(self, error: WorkerLost, failures: int, max_failures: int) -> None:
        """Say that a worker was lost; raise it where that was too often."""
        if failures > max_failures:
            times = "once" if failures == 1 else f"{failures} times"
            raise WorkerLost(
                f"a worker was lost {times}, --max-failures is {max_failures}: {error}; "
                "continue with --resume"
            ) from error
        count = "" if isinstance(error, NodeTaken) else f", {failures} of {max_failures}"
        self.log(f"train: {error}; again {_place(self.folder.train_state(check=False))}{count}")

    def _resize(self, nodes_before: set[str], lost: bool) -> None:
        """Go on with as many workers as there is room for.

        Raises:
            RecrayError: These are fewer than allowed.
        """
        now, least, gpus = self.metadata.workers, self.allowed.least, self.job.gpus
        room = workers_left(self.allowed.most, nodes_before, lost, gpus)
        if room < least and capacity().max_cpus >= least:
            scale_up(least)
            room = workers_left(self.allowed.most, nodes_before, lost, gpus)
        if room < least:
            kept = _place(self.folder.train_state(check=False))
            raise RecrayError(
                f"--workers {self.allowed}: the nodes that are left have room for {room}, the "
                f"fewest are {least}; {self.folder} is kept {kept}: "
                "continue with --resume when there are more nodes, or with fewer --workers"
            )
        if room == now:
            return
        if room > now:  # on nodes that may be new
            require_shared(self.folder.folder)
        which = "the nodes that are left have" if room < now else "the cluster has"
        self.log(
            f"train: {which} room for {room}: goes on with {counted(room)} instead of {now}; "
            f"{DIGITS}"
        )
        self.metadata = self.metadata.model_copy(update={"workers": room})
        self.folder.reserve(self.metadata, self.folder.train_state(check=False))


def counted(workers: int) -> str:
    """1 worker, 2 workers."""
    return f"{workers} worker{'s' * (workers > 1)}"


def _place(state: TrainState) -> str:
    """Where a checkpoint is."""
    steps = f" and {state.step:,} steps" if state.step else ""
    return f"after epoch {state.epoch}{steps}"
