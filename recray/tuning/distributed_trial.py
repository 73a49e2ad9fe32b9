"""RAY TRAIN in a trial: the loop on several workers, each with the users it owns.

Workers wait after each epoch until the trial tells them to go on or to stop. So no epoch is
trained that a scheduler does not want, and a trial that has ended has given back its CPUs: its
workers have left by themselves, and nothing has to find out that they are gone.
"""

import queue
import threading
from dataclasses import replace
from typing import Any

import ray.train
import torch
from ray.train.v2._internal.exceptions import (
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)

from recray.config import build_settings
from recray.errors import WorkerLost
from recray.training import trainer
from recray.training.collectives import Workers
from recray.tuning.request import Order
from recray.tuning.store import Goal, SweepFolder
from recray.tuning.trial import Sealed, Unsaved, one_line, report_of
from recray.tuning.trial_queue import Candidate

Entry = dict[str, Any]


class Gate:
    """Where rank 0 and the trial meet, as a Ray actor: an epoch's metrics for leave to go on."""

    def __init__(self) -> None:
        self._entries: queue.Queue[Entry] = queue.Queue()
        self._leave: queue.Queue[bool] = queue.Queue()

    def report(self, entry: Entry) -> bool:
        """Hand in an epoch; returns whether to train another, after the last one at once."""
        self._entries.put(entry)
        return not entry["done"] and self._leave.get()

    def answer(self, more: bool) -> None:
        """Give leave, or take it."""
        self._leave.put(more)

    def next(self) -> Entry:
        """Wait for an epoch."""
        return self._entries.get()


class TeamTrial:
    """A trial as TrialRun is one, on several workers.

    Args:
        prepared: Folder of the data set; every worker reads the parts of its own users.
        sweep: Where its file goes.
        candidate: What is tried.
        goal: What is compared.
        order: How many workers, and what they reserve.
    """

    def __init__(
        self,
        prepared: str,
        sweep: SweepFolder,
        candidate: Candidate,
        goal: Goal,
        order: Order,
    ) -> None:
        self.sweep, self.candidate, self.goal = sweep, candidate, goal
        self.history: list[Entry] = []
        self._failure: Exception | None = None
        self._gate: Any = ray.remote(Gate).options(num_cpus=0, max_concurrency=4).remote()
        config = {"prepared": prepared, "settings": candidate.settings, "gate": self._gate}
        self._team = threading.Thread(target=self._train, args=(config, order), daemon=True)

    def _train(self, config: dict[str, Any], order: Order) -> None:
        folder = self.sweep.folder.child(".ray").child(self.candidate.key)
        try:
            trainer.fit(trial_worker, config, folder, order.workers, order.gpus / order.workers)
        except Exception as error:
            self._failure = error

    def step(self) -> dict[str, Any]:
        """Let the workers train one epoch, or find the trial at its end.

        Returns:
            What `report_of` says.

        Raises:
            Exception: The workers' processes died, which is not the trial's fault.
        """
        if not self.history:
            self._team.start()
        else:
            self._gate.answer.remote(True)
        entry = self._wait()
        if entry is None:
            return self._ended_early()
        done = entry.pop("done")
        self.history.append(entry)
        if done:
            self._team.join()
            self.sweep.save(self.candidate.ended("finished", self.history))
        return report_of(self.history, self.goal, done)

    def _wait(self) -> Entry | None:
        """The next epoch; None if the workers have gone."""
        reference = self._gate.next.remote()
        while True:
            alive = self._team.is_alive()
            ready, _ = ray.wait([reference], timeout=0.2)
            if ready:
                entry: Entry = ray.get(reference)
                return entry
            if not alive:
                return None

    def _ended_early(self) -> dict[str, Any]:
        failure = cause_of(self._failure or RuntimeError("its workers left before it ended"))
        self.sweep.save(self.candidate.ended("failed", self.history, one_line(failure)))
        return report_of(self.history, self.goal, done=True)

    def close(self) -> None:
        """Make the workers leave, and wait for it."""
        if self._team.is_alive():
            self._gate.answer.remote(False)
            self._team.join()


def cause_of(error: Exception) -> Exception:
    """What a worker raised.

    Raises:
        Exception: The error as it is: a process died, or another one missed it.
    """
    if isinstance(error, WorkerLost):
        raise error
    failures = [getattr(f, "_base_exc", f) for f in getattr(error, "worker_failures", {}).values()]
    dead = (ray.exceptions.RayError, WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError)
    if any(isinstance(f, dead) or "gloo" in str(f) for f in failures):
        raise error
    return failures[0] if failures else error


def trial_worker(config: dict[str, Any]) -> None:
    """Train a trial's settings on the users that this worker owns, as long as there is leave."""
    torch.set_num_threads(1)
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    settings = build_settings(config["settings"])
    prepared = Sealed.open(config["prepared"])
    entries: list[Entry] = []
    run = trainer.build_run(settings, prepared, prepared.folder.path, workers, entries.append)
    states = replace(run, folder=Unsaved(prepared.folder.path)).epochs()
    next(states)  # the state before the first epoch
    for progress in states:
        done = progress.stopped or progress.epoch >= settings.train.epochs
        more = 0.0
        if workers.rank == 0:
            entry = {**entries[-1], "done": done}
            more = float(ray.get(config["gate"].report.remote(entry)))
        (go_on,) = workers.sum_floats(more)
        if not go_on:
            return
