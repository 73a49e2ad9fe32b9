"""Training in plain processes that meet over gloo: what each spends, sends and holds."""

import tempfile
import time
from collections.abc import Callable
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
from recray.models.objectives import ImplicitALS, as_linear
from recray.training.als import ALSEpochs
from recray.training.checkpoint import RunFolder
from recray.training.loop import TrainingRun, build_run
from recray.training.shard import Shard, Workers


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
    def cpu_seconds(self) -> float:
        """Solve all items once."""
        self.workers.barrier()
        before = time.process_time()
        self._solve_items()
        return time.process_time() - before


def train(settings: Settings, prepared: str, folder: Path, workers: int) -> dict[str, float]:
    """Train in so many processes, each with one thread.

    Returns:
        The most of any worker: cpu_seconds and memory_bytes (beyond an idle process), and
        wall_seconds and summed_bytes; loading the rows is included, starting a process is not.
        And item_seconds, the CPU seconds of solving all items once more.

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
    answers.put(found | {"item_seconds": ItemSolves.of(job).cpu_seconds()})
    if workers > 1:
        dist.destroy_process_group()
