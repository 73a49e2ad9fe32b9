"""What Ray raises for a failed task or worker, turned into the errors of recray."""

from recray.errors import RecrayError, WorkerLost


def user_error(error: BaseException) -> RecrayError | None:
    """Find the RecrayError inside what Ray raised for a failed task or worker.

    WorkerLost does not count: it says only that a worker missed another one.
    """
    found = (e for e in _chain(error) if isinstance(e, RecrayError))
    return next((e for e in found if not isinstance(e, WorkerLost)), None)


def lost_worker(error: BaseException) -> WorkerLost | None:
    """Say which workers died, if that is all that happened.

    A worker may also have been stopped, or have waited in vain for another one. Where a worker
    raised an error of its own, the answer is None.
    """
    import ray.exceptions

    dead = []
    for rank, failure in sorted(worker_failures(error).items()):
        chain = _chain(failure)
        if any(isinstance(e, ray.exceptions.RayActorError) for e in chain):
            dead.append(rank)
        elif not any(isinstance(e, WorkerLost | TimeoutError) for e in chain):
            return None
    if dead:
        return WorkerLost(f"worker {', '.join(map(str, dead))} (counted from 0) died")
    return next((e for e in _chain(error) if isinstance(e, WorkerLost)), None)


def worker_failures(error: BaseException) -> dict[int, Exception]:
    """Map the rank of each worker that failed to what it raised; empty where Ray names none."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    return failures


def process_failed(failure: Exception) -> bool:
    """Whether a worker's failure says only that a process died, hung, or missed another one."""
    import ray.exceptions

    if isinstance(failure, ray.exceptions.RayError) or "gloo" in str(failure):
        return True
    # The classes WorkerHealthCheckFailedError and -TimeoutError of Ray Train are private.
    return type(failure).__name__.startswith("WorkerHealthCheck")


def unplaced(error: BaseException, workers: int) -> RecrayError | None:
    """The error for a run whose workers found no free CPUs until Ray gave up; else None."""
    failure = getattr(error, "controller_failure", None)
    if type(failure).__name__ != "WorkerGroupStartupTimeoutError":
        return None
    return RecrayError(
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
