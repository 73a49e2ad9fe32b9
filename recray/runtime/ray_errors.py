"""What Ray raises for workers that failed: an error for the user, a lost worker, or a bug."""

import re

from recray.errors import NodeTaken, NotPlaced, RecrayError, WorkerLost

_LOW_ON_MEMORY = re.compile(r"running low on memory|memory usage threshold", re.IGNORECASE)
"""Ray's words where its memory monitor has killed a process."""
_STARTUP = "WorkerGroupStartup"
"""Begins the names of Ray Train's private errors of workers that did not come up."""


def group_failure(error: BaseException, workers: int) -> RecrayError | None:
    """The error of recray for what Ray Train raised; None for a bug, which keeps its traceback.

    Args:
        error: What Ray Train raised.
        workers: Workers of the group.
    """
    return user_error(error) or lost_worker(error) or not_started(error, workers)


def user_error(error: BaseException) -> RecrayError | None:
    """Find the RecrayError inside what Ray raised for a failed task or worker.

    WorkerLost does not count: it says only that a worker missed another one.
    """
    found = (e for e in _chain(error) if isinstance(e, RecrayError))
    return next((e for e in found if not isinstance(e, WorkerLost)), None)


def lost_worker(error: BaseException) -> RecrayError | None:
    """Say which workers died, if that is all that happened.

    A worker may also have been stopped, or have waited in vain for another one. Where a worker
    raised an error of its own, the answer is None. One that Ray has killed since its node ran out
    of memory is not lost: it would be killed again.
    """
    failures = sorted(worker_failures(error).items())
    if own_failure(error) is not None:
        return None
    dead = [rank for rank, failure in failures if _process_died(failure)]
    for rank, failure in failures:
        if _LOW_ON_MEMORY.search(str(failure)):
            return RecrayError(
                f"worker {rank} (counted from 0) was killed: its node ran out of memory; give "
                "nodes with more memory, or a smaller train.batch_size or model.dim"
            )
    taken = getattr(error, "preemption_info", None)
    if taken is not None or any(getattr(e, "preempted", False) for e in _chain(error)):
        ranks = ", ".join(map(str, dead or (taken.preempted_ranks if taken is not None else [])))
        return NodeTaken(f"the node of worker {ranks} (counted from 0) was taken away")
    if dead:
        return WorkerLost(f"worker {', '.join(map(str, dead))} (counted from 0) died")
    return next((e for e in _chain(error) if isinstance(e, WorkerLost)), None)


def own_failure(error: BaseException) -> Exception | None:
    """What the first worker raised that did not just die, hang, or miss another one."""
    for _, failure in sorted(worker_failures(error).items()):
        missed = any(isinstance(e, WorkerLost | TimeoutError) for e in _chain(failure))
        if not missed and not _process_died(failure):
            return failure
    return None


def worker_failures(error: BaseException) -> dict[int, Exception]:
    """Map the rank of each worker that failed to what it raised; empty where Ray names none."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    return failures


def _process_died(failure: Exception) -> bool:
    """Whether a worker failed since its process died or hung."""
    import ray.exceptions

    # The classes WorkerHealthCheckFailedError and -TimeoutError of Ray Train are private.
    hung = type(failure).__name__.startswith("WorkerHealthCheck")
    return hung or any(isinstance(e, ray.exceptions.RayActorError) for e in _chain(failure))


def not_started(error: BaseException, workers: int) -> WorkerLost | None:
    """The error for workers that found no free CPUs until Ray gave up, or died while they began."""
    name = type(getattr(error, "controller_failure", None)).__name__
    if not name.startswith(_STARTUP):
        return None
    if "Timeout" not in name:
        return WorkerLost("a worker died while the group began")
    return NotPlaced(
        f"--workers {workers}: the cluster had no room for them, others use its CPUs; "
        "give fewer workers, or try again later"
    )


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and all exceptions that it wraps, each once."""
    chain: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop()
        if current is None or any(current is one for one in chain):
            continue
        chain.append(current)
        # `cause` is of RayTaskError, `health_check_failure` of a worker that Ray Train watches.
        queue += [current.__cause__, current.__context__, getattr(current, "cause", None)]
        queue.append(getattr(current, "health_check_failure", None))
        queue += worker_failures(current).values()
    return chain
