"""Tasks of Ray Data: how they are called, watched and counted."""

import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import pyarrow as pa

from recray.errors import RecrayError
from recray.progress import StageFacts, StageProgress
from recray.runtime.nodes import scale_up
from recray.runtime.session import quieten
from recray.runtime.task_watch import watch_tasks

if TYPE_CHECKING:
    from ray.data import Dataset, Datasource

T = TypeVar("T")
OUTCOMES = pa.schema([("id", pa.int64()), ("outcome", pa.binary())])
"""What tasks hand back: the number of a call, and its outcome."""


class Work(NamedTuple):
    """What a task has done; None where it did not count it.

    Args:
        rows: Ratings.
        bytes: Bytes that it has written.
    """

    rows: int | None = None
    bytes: int | None = None


class ResultsSink(Protocol[T]):
    """A Datasink that takes numbers of calls.

    Attributes:
        shared: Reference to what all calls need, by the names of the arguments.
        results: What the calls returned, in the order of their numbers; set at the end.
    """

    shared: Any
    results: list[T]


def outcome(function: Callable[[], object]) -> bytes:
    """Call a function; return what it returned, or the error that it raised for the user.

    Such an error, raised in a task, would end all of them with Ray's own words.
    """
    try:
        value = function()
    except RecrayError as error:
        value = error
    return pickle.dumps(value)  # Arrow has a schema for bytes, whatever a function returns


def outcome_table(number: int, function: Callable[[], object]) -> pa.Table:
    """The outcome of a call, as a block of OUTCOMES."""
    return pa.table([[number], [outcome(function)]], schema=OUTCOMES)


def results_of(outcomes: Iterable[tuple[int, bytes]]) -> list[Any]:
    """What calls returned, in the order of their numbers.

    Raises:
        RecrayError: What the first call that failed, by its number, raised for the user.
    """
    return _in_order((number, pickle.loads(content)) for number, content in outcomes)


def _in_order(numbered: Iterable[tuple[int, Any]]) -> list[Any]:
    """As results_of, of outcomes that have been unpacked."""
    results = [result for _, result in sorted(numbered, key=lambda pair: pair[0])]
    for result in results:
        if isinstance(result, RecrayError):
            raise result
    return results


def map_tasks(function: Callable[..., T], count: int, **shared: object) -> list[T]:
    """Call function(i, **shared) for i in 0..count-1 as Ray Data tasks, one task for each i.

    Args:
        function: What is called; Ray sends it to the workers. It returns something small, such as
            counts: all results come to this process.
        count: How many calls.
        **shared: What all calls need and may be large: it lies in the object store once.

    Returns:
        The results in order of i.

    Raises:
        RecrayError: What the first failing call, by i, raised for the user.
    """
    return TaskRunner().map("", function, count, _uncounted, **shared)


def _uncounted(_result: object) -> Work:
    return Work()


@dataclass
class TaskRunner:
    """Runs the stages of a job, each as many tasks of Ray Data.

    Args:
        on_progress: Is told of the tasks while they run.

    Attributes:
        stages: What was counted of each stage, in the order in which they ended.
    """

    on_progress: Callable[[StageProgress], None] = lambda _progress: None
    stages: list[StageFacts] = field(default_factory=list)

    def map(
        self,
        stage: str,
        function: Callable[..., T],
        count: int,
        work_of: Callable[[T], Work] = _uncounted,
        **shared: object,
    ) -> list[T]:
        """Call a function of a number; as map_tasks, whose arguments it takes.

        Args:
            stage: Name of the stage.
            work_of: The work behind a result.
        """
        import ray

        stored = ray.put(shared)

        def call(batch: pa.Table) -> pa.Table:
            known = ray.get(stored)
            numbers = batch["id"].to_pylist()
            tables = [outcome_table(n, partial(function, n, **known)) for n in numbers]
            return pa.concat_tables(tables)

        tasks = _numbers(count).map_batches(call, batch_size=None, batch_format="pyarrow")
        return self._collected(stage, tasks, count, work_of)

    def read(
        self, stage: str, source: "Datasource", count: int, work_of: Callable[[T], Work]
    ) -> list[T]:
        """Run the read tasks of a source whose blocks are OUTCOMES, numbered 0..count-1."""
        import ray.data

        scale_up(1)
        tasks = _quiet(ray.data.read_datasource(source, override_num_blocks=count))
        return self._collected(stage, tasks, count, work_of)

    def write(
        self,
        stage: str,
        sink: ResultsSink[T],
        rows: Sequence[int],
        work_of: Callable[[T], Work],
        **shared: object,
    ) -> list[T]:
        """Hand the numbers 0..len(rows)-1 to a sink, each in a task of its own; return its results.

        Args:
            stage: Name of the stage.
            sink: Takes the numbers.
            rows: Ratings behind each number. While tasks run it is known how many have ended, not
                which ones; the first ones are taken to be these.
            work_of: The work behind a result.
            **shared: As in `map`.
        """
        import ray

        sink.shared = ray.put(shared)
        count, begin = len(rows), time.monotonic()

        def ended(done: int) -> None:
            if done < count:  # whether all have ended well, the sink says
                self._tell(stage, begin, count, sum(rows[:done]), done)

        tasks = _numbers(count)
        watch_tasks(tasks, ended)
        tasks.write_datasink(sink)
        work = [work_of(result) for result in sink.results]
        self._tell(stage, begin, count, _total(one.rows for one in work), count)
        self._note(stage, tasks, work)
        return sink.results

    def _collected(
        self, stage: str, tasks: "Dataset", count: int, work_of: Callable[[T], Work]
    ) -> list[T]:
        """Run tasks whose blocks are OUTCOMES, and return the results as results_of does."""
        results, work, begin = list[tuple[int, Any]](), list[Work](), time.monotonic()
        batches: Iterable[Any] = tasks.iter_batches(batch_size=None, batch_format="pyarrow")
        for batch in batches:
            for row in batch.to_pylist():
                result = pickle.loads(row["outcome"])
                results.append((row["id"], result))
                if not isinstance(result, RecrayError):  # a task that failed is not done
                    work.append(work_of(result))
            self._tell(stage, begin, count, _total(one.rows for one in work), len(work))
        self._note(stage, tasks, work)
        return _in_order(results)

    def _tell(self, stage: str, begin: float, count: int, rows: int | None, done: int) -> None:
        self.on_progress(StageProgress(stage, done, count, rows, time.monotonic() - begin))

    def _note(self, stage: str, tasks: "Dataset", work: list[Work]) -> None:
        """Keep what Ray Data has counted of tasks that have ended."""
        summary: Any = tasks.get_stats_summary()
        counted, metrics = summary.operators_stats[-1], summary.extra_metrics
        self.stages.append(
            StageFacts(
                stage=stage,
                operators=counted.operator_name,
                tasks=counted.task_rows.count,
                failed=metrics["num_tasks_failed"],
                rows=_total(one.rows for one in work),
                bytes=_total(one.bytes for one in work),
                wall_s=round(counted.time_total_s, 3),
                task_s=round(counted.wall_time.sum, 3),
                cpu_s=round(counted.cpu_time.sum, 3),
                max_memory_bytes=metrics["max_uss_bytes"]["max"],
            )
        )


def _numbers(count: int) -> "Dataset":
    """The numbers 0..count-1, each in a block of its own."""
    import ray.data

    scale_up(1)
    return _quiet(ray.data.range(count, override_num_blocks=count))


def _quiet(dataset: "Dataset") -> "Dataset":
    """A data set whose tasks print nothing: Ray Data's bars would stand on stdout."""
    quieten()
    dataset.context.enable_progress_bars = False
    return dataset


def _total(counts: Iterable[int | None]) -> int | None:
    """The sum of what was counted; None where nobody counts."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
