"""RAY TRAIN: groups of workers that wait for their turn, so that ways of training can alternate."""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from pydantic import TypeAdapter

from recray.benchmarks.steps import Case, Pass, pass_of, rate
from recray.runtime.environment import switched
from recray.runtime.ray_switches import POLL_VARIABLE
from recray.training.shard import Workers

POLL_S = 0.02


@dataclass(frozen=True)
class Question:
    """A pass that a group is to run; without a case it forgets what it has built."""

    way: str
    case: Case | None


@dataclass(frozen=True)
class Answer:
    """Pairs a second of a pass, and the bytes that a worker receives in a step of it."""

    rate: float = 0.0
    bytes: float = 0.0


class Group:
    """Workers of Ray Train that run what they are asked for.

    Args:
        folder: Where questions and answers are left.
        workers: Processes.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.workers, self.asked = folder, workers, 0
        folder.mkdir(parents=True)
        config = {"folder": str(folder)}
        self.thread = threading.Thread(target=_fit, args=(_serve, config, workers), daemon=True)
        self.thread.start()

    def ask(self, way: str, case: Case | None) -> Answer:
        """Let the group run one pass; no case lets it forget what it has built.

        Raises:
            RuntimeError: The group has ended.
        """
        self._leave(Question(way, case))
        answer = self.folder / f"answer-{self.asked}.json"
        while not answer.exists():
            if not self.thread.is_alive():
                raise RuntimeError("the workers of the benchmark have ended")
            time.sleep(POLL_S)
        self.asked += 1
        return Answer(**json.loads(answer.read_text()))

    def end(self) -> None:
        """Let the workers go."""
        self._leave(None)
        self.thread.join()

    def _leave(self, question: Question | None) -> None:
        value = None if question is None else asdict(question)
        _write(self.folder / f"question-{self.asked}.json", value)


@contextlib.contextmanager
def group(folder: Path, workers: int) -> Iterator[Group]:
    """A group that ends with the block."""
    made = Group(folder, workers)
    try:
        yield made
    finally:
        made.end()


def _write(path: Path, value: object) -> None:
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(value))
    beside.rename(path)


def _serve(config: dict[str, Any]) -> None:
    """What a worker does: answer questions in turn until there is none."""
    torch.set_num_threads(1)
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    built: dict[Question, tuple[Pass, float]] = {}
    folder, number = Path(config["folder"]), 0
    while True:
        path = folder / f"question-{number}.json"
        while not path.exists():
            time.sleep(POLL_S)
        question = TypeAdapter(Question | None).validate_json(path.read_text())
        if question is None:
            return
        answer = _answer(question, built, workers)
        if workers.rank == 0:
            _write(folder / f"answer-{number}.json", asdict(answer))
        number += 1


def _answer(
    question: Question, built: dict[Question, tuple[Pass, float]], workers: Workers
) -> Answer:
    if question.case is None:
        built.clear()
        return Answer()
    if question not in built:
        built[question] = pass_of(question.way, question.case, workers)
        built[question][0]()  # the first pass sets up what later ones use
    run, moved = built[question]
    workers.barrier()
    return Answer(rate(run), moved)


def _fit(work: Callable[[dict[str, Any]], None], config: dict[str, Any], workers: int) -> None:
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    trainer = ray.train.torch.TorchTrainer(
        work,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=workers),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # typed as the one before V2
            storage_path=config["folder"],
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
        torch_config=ray.train.torch.TorchConfig(backend="gloo"),
    )
    trainer.fit()


def naive(folder: str, epochs: int, seconds: float, workers: int) -> None:
    """Epochs of so many seconds under Ray Train as it comes, each reported."""
    config = {"folder": folder, "epochs": epochs, "seconds": seconds}
    with switched({POLL_VARIABLE: "2.0"}, overrule=True):  # Ray's own
        _fit(_sleep_and_report, config, workers)


def _sleep_and_report(config: dict[str, Any]) -> None:
    for epoch in range(config["epochs"]):
        time.sleep(config["seconds"])
        ray.train.report({"epoch": epoch})
