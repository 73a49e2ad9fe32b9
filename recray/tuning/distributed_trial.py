"""RAY TRAIN in a trial: the training loop on several workers, each with the users it owns.

After each epoch the workers wait until the trial tells them to go on or to stop. No epoch is
trained that the scheduler does not want, and the workers of a trial that has ended have left by
themselves, so that its CPUs are free.
"""

import queue
import threading
from typing import Any

import ray.train
import torch

from recray.config import build_settings
from recray.errors import WorkerLost
from recray.runtime.ray_errors import own_failure
from recray.storage import Folder
from recray.training.failures import machine_failures_told
from recray.training.loop import build_run
from recray.training.ray_train import fit
from recray.training.shard import Workers
from recray.tuning.request import TuneRequest
from recray.tuning.results import Entry
from recray.tuning.store import Metric, SweepFolder, TrialSpec
from recray.tuning.trial import NoCheckpoints, NoTestDataset, Trial, TrialReport, error_summary


class EpochBarrier:
    """Where rank 0 of the workers and the trial wait for each other, as a Ray actor."""

    def __init__(self) -> None:
        self._entries: queue.Queue[tuple[Entry, bool]] = queue.Queue()
        self._answers: queue.Queue[bool] = queue.Queue()

    def report(self, entry: Entry, done: bool) -> bool:
        """Hand in an epoch and wait; returns whether to train another one.

        Args:
            entry: The metrics of the epoch.
            done: Whether it is the last one; then nothing is waited for.
        """
        self._entries.put((entry, done))
        return not done and self._answers.get()

    def answer(self, go_on: bool) -> None:
        """Tell the workers to train another epoch, or to leave."""
        self._answers.put(go_on)

    def next(self) -> tuple[Entry, bool]:
        """Wait for an epoch; returns its metrics and whether it is the last one."""
        return self._entries.get()


class DistributedTrial(Trial):
    """A trial on several workers.

    Args:
        prepared: Folder of the data set; every worker reads the parts of its own users.
        sweep: The folder for its file.
        spec: The trial.
        metric: What trials are compared by.
        request: The number of workers, and what they reserve.
    """

    def __init__(
        self,
        prepared: Folder,
        sweep: SweepFolder,
        spec: TrialSpec,
        metric: Metric,
        request: TuneRequest,
    ) -> None:
        super().__init__(sweep, spec, metric)
        self._failure: BaseException | None = None
        # Two calls may wait in the actor at once, `report` and `next`, while `answer` comes in.
        self._barrier: Any = (
            ray.remote(EpochBarrier).options(num_cpus=0, max_concurrency=4).remote()
        )
        arguments = (prepared, request.workers, request.gpus / request.workers)
        self._training = threading.Thread(target=self._train, args=arguments, daemon=True)

    def _train(self, prepared: Folder, workers: int, gpus_per_worker: float) -> None:
        config = {"prepared": prepared, "settings": self.spec.settings, "barrier": self._barrier}
        folder = self.sweep.folder.child(".ray").child(self.spec.key)
        try:
            fit(trial_worker, config, folder, workers, gpus_per_worker)
        except BaseException as error:  # also of a signal, which ends no thread but this one
            self._failure = error

    def step(self) -> TrialReport:
        """Let the workers train one epoch.

        Raises:
            WorkerLost: The workers died or were stopped, which is not the trial's fault: it has
                no result, and a resumed search tries it again.
        """
        if not self.history:
            self._training.start()
        else:
            self._barrier.answer.remote(True)
        epoch = self._wait()
        if epoch is None:
            return self._ended_early()
        entry, done = epoch
        self.history.append(entry)
        if done:
            self._training.join()
        return self.report("finished" if done else None)

    def _wait(self) -> tuple[Entry, bool] | None:
        """The next epoch; None if the workers have gone."""
        reference = self._barrier.next.remote()
        while True:
            # Read before the wait: an epoch that comes in just before the workers leave counts.
            alive = self._training.is_alive()
            ready, _ = ray.wait([reference], timeout=0.2)
            if ready:
                epoch: tuple[Entry, bool] = ray.get(reference)
                return epoch
            if not alive:
                return None

    def _ended_early(self) -> TrialReport:
        return self.report("failed", error_summary(cause_of(self._failure)))

    def close(self) -> None:
        """Make the workers leave, and wait until they have."""
        if self._training.is_alive():
            self._barrier.answer.remote(False)
            self._training.join()


def cause_of(failure: BaseException | None) -> Exception:
    """The error that a worker raised.

    Args:
        failure: Why the workers left before the trial ended; None where they say nothing.

    Raises:
        WorkerLost: They did not fail: a process died, missed another one, or was stopped.
    """
    if failure is None or not isinstance(failure, Exception):
        raise WorkerLost("the workers of the trial were stopped before it ended") from failure
    if isinstance(failure, WorkerLost):
        raise failure
    return own_failure(failure) or failure


def trial_worker(config: dict[str, Any]) -> None:
    """Train a trial on the users that this worker owns, until the barrier says to leave."""
    torch.set_num_threads(1)
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    with machine_failures_told(workers.rank, workers.size):
        _train_epochs(config, workers)


def _train_epochs(config: dict[str, Any], workers: Workers) -> None:
    settings = build_settings(config["settings"])
    prepared = NoTestDataset.open(config["prepared"])
    entries: list[Entry] = []
    states = build_run(settings, prepared, NoCheckpoints(), workers, entries.append).epochs()
    next(states)  # the state before the first epoch
    for progress in states:
        done = progress.stopped or progress.epoch >= settings.train.epochs
        answer = 0.0
        if workers.rank == 0:
            answer = float(ray.get(config["barrier"].report.remote(entries[-1], done)))
        # The others learn rank 0's answer by the sum, which is as late as the search is busy.
        (go_on,) = workers.with_long_timeout().sum_floats(answer)
        if not go_on:
            return
