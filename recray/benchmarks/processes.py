"""Training in plain processes that meet over gloo: what each spends, sends and holds."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from pydantic import JsonValue
from torch import Tensor

from recray.benchmarks.harness import own_memory
from recray.config import Settings, build_settings
from recray.data.dataset import Prepared
from recray.models.objectives import ImplicitALS, as_linear, row_solver
from recray.training import divided_items
from recray.training.als import ALSEpochs
from recray.training.checkpoint import RunFolder
from recray.training.loop import TrainingRun, build_run
from recray.training.shard import Shard, Workers

REPETITIONS = 3
"""How often all items are solved to time it."""


@dataclass(frozen=True)
class CountingWorkers(Workers):
    """Workers that count the bytes of what they sum, at once or by parts."""

    summed: list[int] = field(default_factory=list)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all workers, counted."""
        if self.size > 1:
            self.summed.append(value.numel() * value.element_size())
        return super().sum(value)

    def begin_exchange(self, parts: Tensor) -> tuple[Callable[[], object], Tensor]:
        """The exchange of parts of a sum, counted."""
        self.summed.append(parts.numel() * parts.element_size())
        return super().begin_exchange(parts)

    def begin_gather(self, value: Tensor) -> tuple[Callable[[], object], Tensor]:
        """The table that is put together, counted."""
        self.summed.append(self.size * value.numel() * value.element_size())
        return super().begin_gather(value)

    def exchange(self, text: str) -> list[str]:
        """What is told of a checkpoint is no sum, and not counted."""
        return Workers(self.rank, self.size, self.timeout).exchange(text)


class ItemSolves(ALSEpochs):
    """Exact solves of items alone, as an epoch has them."""

    @classmethod
    def of(cls, run: TrainingRun) -> Self:
        """Those of a run that has been trained."""
        if not isinstance(run.objective, ImplicitALS) or not isinstance(run.shard, Shard):
            raise ValueError("only exact solves solve items")
        return cls(as_linear(run.model), run.objective, run.shard, run.workers)

    @torch.no_grad()
    def cpu_seconds(self) -> tuple[float, float]:
        """CPU seconds of solving all items once, and of the solves alone, without the sums that
        they solve and the exchange of these: the median of several.
        """
        found = []
        for _ in range(REPETITIONS):
            self.workers.barrier()
            with solves_timed() as solves:
                before = time.process_time()
                self._solve_items()
                found.append((time.process_time() - before, solves.seconds))
        whole, alone = (statistics.median(several) for several in zip(*found, strict=True))
        return whole, alone


@dataclass
class Solves:
    """What solves have taken so far."""

    seconds: float = 0.0


@contextmanager
def solves_timed() -> Iterator[Solves]:
    """Count the CPU seconds of this thread in solving summed equations."""
    solves, solve = Solves(), row_solver.solve_equations

    def counted(*given: Any) -> Tensor:
        before = time.thread_time()
        solved = solve(*given)
        solves.seconds += time.thread_time() - before
        return solved

    try:
        for module in (row_solver, divided_items):
            setattr(module, "solve_equations", counted)  # noqa: B010
        yield solves
    finally:
        for module in (row_solver, divided_items):
            setattr(module, "solve_equations", solve)  # noqa: B010


def train(settings: Settings, prepared: str, folder: Path, workers: int) -> dict[str, float]:
    """Train in so many processes, each with one thread.

    Returns:
        The most of any worker: cpu_seconds and memory_bytes (beyond an idle process), and
        wall_seconds and summed_bytes; loading the rows is included, starting a process is not.
        And item_seconds and solve_seconds, of solving all items once more; see ItemSolves.

    Raises:
        RuntimeError: A worker died.
    """
    context = get_context("spawn")
    with tempfile.TemporaryDirectory(dir=folder) as run:
        answers = context.Queue()
        work = (settings.plain(), prepared, run, workers, answers)
        processes = [context.Process(target=_worker, args=(r, *work)) for r in range(workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RuntimeError("a worker of the benchmark died; its traceback is above")
        found: list[dict[str, float]] = [answers.get() for _ in processes]
    return {name: max(one[name] for one in found) for name in found[0]}


def _worker(
    rank: int, settings: dict[str, JsonValue], prepared: str, run: str, workers: int, answers: Any
) -> None:
    torch.set_num_threads(1)
    if workers > 1:
        store = f"file://{run}/meeting"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=workers)
    counting = CountingWorkers(rank, workers)
    Workers.barrier(counting)  # nobody's clock starts before all are there
    held, cpu, wall = own_memory("VmRSS"), time.process_time(), time.perf_counter()
    job = build_run(
        build_settings(settings),
        Prepared.open(prepared),
        RunFolder(f"{run}/run"),
        counting,
        lambda _: None,
    )
    job.fit()
    found = {
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - wall,
        "memory_bytes": float(own_memory("VmHWM") - held),
        "summed_bytes": float(sum(counting.summed)),
    }
    whole, alone = ItemSolves.of(job).cpu_seconds()
    answers.put(found | {"item_seconds": whole, "solve_seconds": alone})
    if workers > 1:
        dist.destroy_process_group()
