"""What Ray raises for a failed task or worker, turned into the errors of recray."""

from recray.errors import RecrayError, WorkerLost


def user_error(error: BaseException) -> RecrayError | None:
    """The RecrayError inside what Ray raised for a failed task or worker, if there is one; that
    others lost this worker is not counted.
    """
    found = (e for e in _inside(error) if isinstance(e, RecrayError))
    return next((e for e in found if not isinstance(e, WorkerLost)), None)


def lost_worker(error: BaseException) -> WorkerLost | None:
    """What Ray raised, if all that happened is that a worker died, was stopped, or was waited for
    in vain; None where one raised something of its own.
    """
    import ray.exceptions

    dead = []
    for rank, failure in sorted(worker_failures(error).items()):
        inside = _inside(failure)
        if any(isinstance(e, ray.exceptions.RayActorError) for e in inside):
            dead.append(rank)
        elif not any(isinstance(e, WorkerLost | TimeoutError) for e in inside):
            return None
    if dead:
        return WorkerLost(f"worker {', '.join(map(str, dead))} (counted from 0) died")
    found = (e for e in _inside(error) if isinstance(e, WorkerLost))
    return next(found, None)


def worker_failures(error: BaseException) -> dict[int, Exception]:
    """What each worker that failed raised, by its rank; empty where Ray names none."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    return failures


def process_failed(failure: Exception) -> bool:
    """Whether a worker's failure says only that a process died, hung, or missed another one."""
    import ray.exceptions

    if isinstance(failure, ray.exceptions.RayError) or "gloo" in str(failure):
        return True
    return type(failure).__name__.startswith("WorkerHealthCheck")  # of Ray Train, not public


def unplaced(error: BaseException, workers: int) -> RecrayError | None:
    """What Ray raised, if it had no room for the workers in all the time that it was given."""
    failure = getattr(error, "controller_failure", None)
    if type(failure).__name__ != "WorkerGroupStartupTimeoutError":
        return None
    return RecrayError(
        f"--workers {workers}: the cluster had no room for them, others use its CPUs; "
        "give fewer workers, or try again later"
    )


def _inside(error: BaseException) -> list[BaseException]:
    """An exception and all that it wraps."""
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop()
        if current is None or any(current is one for one in seen):
            continue
        seen.append(current)
        queue += [current.__cause__, current.__context__, getattr(current, "cause", None)]
        queue.append(getattr(current, "health_check_failure", None))
        queue += worker_failures(current).values()
    return seen
