"""What a cluster is worth and what runs on it: doctor, benchmark, submit, and jobs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recray.cli import results
from recray.cli.base import PATH, Commands, SourcePath, StoragePath, cli, shared
from recray.errors import RecrayError
from recray.progress import Console
from recray.reporting import terminal
from recray.runtime.worker_range import WorkerRange
from recray.storage import is_uri

if TYPE_CHECKING:
    from recray.runtime.jobs import Job, Jobs

OTHER_NAMES = {"retrain": "refresh"}
"""Jobs whose options are those of a command of another name."""
LOOPBACK = ("http://127.0.0.1", "http://localhost")

dashboard = click.option(
    "--address",
    metavar="URL",
    help="Dashboard of the cluster.  [default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265]",
)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("job")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--name", help="Of the job, new to the cluster.  [default: JOB and the time]")
@click.option("--follow", is_flag=True, help="Print its log, and exit as it does.")
@click.option(
    "--working-dir",
    default=".",
    metavar="DIR",
    help="What is sent, with jobs/JOB.py in it.  [default: this folder]",
)
@dashboard
@shared()
def submit(
    ui: Console,
    job: str,
    arguments: tuple[str, ...],
    name: str | None,
    follow: bool,
    working_dir: str,
    address: str | None,
) -> None:
    """Run jobs/JOB.py with ARGUMENTS on a cluster: prepare, train, tune, pipeline, ...

    The working folder is sent without data, outputs and environments; nothing of your environment
    is. Run again with the same --out, a job goes on with what it finds there.

    \b
    Example:
        recray submit train /mnt/p --out /mnt/run --workers 4 --address http://head:8265 --follow
        recray submit pipeline ml-1m.zip --preset ranking --follow
    """
    from recray.runtime.jobs import Jobs
    from recray.runtime.working_folder import working_files

    folder = Path(working_dir).resolve()
    script = _script(folder, job)
    words, workers = _checked(job, arguments, set(map(str, working_files(folder))))
    jobs = Jobs(address)
    if workers > 1 and workers > jobs.cpus():
        raise RecrayError(
            f"--workers {workers}: the cluster at {jobs.address} has {jobs.cpus()} CPUs, one is "
            "needed per worker; give fewer workers or add nodes"
        )
    here = str(Path("recray-out").resolve()) if jobs.address.startswith(LOOPBACK) else None
    made = jobs.submit(["python", script, *words], folder, name, here)
    ui.log(f"job {made} at {jobs.address}; it goes on without this terminal")
    if follow:
        _follow(ui, jobs, made)
    else:
        text = f"{made}\nrecray jobs logs {made} --follow\nrecray jobs stop {made}"
        state = jobs.get(made)
        ui.result(results.Submitted(job=made, address=jobs.address, status=state.status), text)


def _script(folder: Path, job: str) -> str:
    """The script of a job, relative to the working folder."""
    names = sorted(file.stem for file in (folder / "jobs").glob("*.py"))
    if job not in names:
        known = f"known are {', '.join(names)}" if names else "it has no jobs/*.py"
        raise RecrayError(f"no jobs/{job}.py in {folder}: {known}; --working-dir names another")
    return f"jobs/{job}.py"


def _checked(job: str, arguments: tuple[str, ...], files: set[str]) -> tuple[list[str], int]:
    """The words of a job as its own process is to read them, and the workers it wants.

    A job that is a command of ours has its options checked here, where the user sees it. The job
    runs in a folder of its own, so what lies outside the files that are sent gets its whole path.
    """
    command = cli.commands.get(OTHER_NAMES.get(job, job))
    if command is None:
        return list(arguments), 1
    context = command.make_context(job, list(arguments))
    paths: set[str] = set()
    for parameter in command.params:
        given = context.params.get(str(parameter.name))
        if given and isinstance(given, str) and _is_path(parameter.type, given):
            paths.add(given)

    def whole(word: str) -> str:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if value not in paths or is_uri(value) or str(Path(value)) in files:
            return word
        return f"{option}{equals}{Path(value).resolve()}"

    return [whole(word) for word in arguments], _least(context.params.get("workers"))


def _least(workers: object) -> int:
    """The workers that a job must have room for at its beginning."""
    return WorkerRange.of(workers).start if isinstance(workers, int | WorkerRange) else 1


def _is_path(kind: object, given: str) -> bool:
    """Whether a value is a path, by the type of its parameter."""
    if isinstance(kind, SourcePath):
        return "/" in given or Path(given).exists()
    return isinstance(kind, StoragePath)


def _follow(ui: Console, jobs: "Jobs", name: str) -> None:
    """Print the log of a job until its end, then exit as it did."""
    out = sys.stderr if ui.as_json else sys.stdout

    def tell(lines: str) -> None:
        print(lines, end="", file=out, flush=True)

    ui.close()  # the log of the job is the sign of life
    try:
        job = jobs.follow(name, tell)
    except KeyboardInterrupt:
        job = _interrupted(ui, jobs, name)
    seconds = f" after {job.seconds:,.1f} s" if job.seconds is not None else ""
    ui.result(_state(job), f"job {name} {job.status.lower()}{seconds}{_why(job)}")
    click.get_current_context().exit(job.status_code)


def _interrupted(ui: Console, jobs: "Jobs", name: str) -> "Job":
    """Ask whether to stop the job; it goes on where nobody can be asked.

    Raises:
        KeyboardInterrupt: It goes on.
    """
    if sys.stdin.isatty() and click.confirm(f"\nstop the job {name} as well?", err=True):
        return jobs.stop(name)
    ui.log(f"{name} goes on; see it with `recray jobs logs {name} --follow`")
    raise KeyboardInterrupt


def _why(job: "Job") -> str:
    """What the cluster says of a job that failed without a status of its own."""
    if job.status == "SUCCEEDED" or job.exit_code is not None or not job.message:
        return ""
    return f": {job.message.strip().splitlines()[-1][:300]}"


def _state(job: "Job") -> results.JobState:
    return results.JobState.model_validate({"job": job.name, **vars(job)})


@cli.group(cls=Commands)
def jobs() -> None:
    """Jobs of a cluster: list, logs, stop."""


@jobs.command("list")
@dashboard
@shared()
def jobs_list(ui: Console, address: str | None) -> None:
    """Show the jobs that were submitted to a cluster.

    \b
    Example:
        recray jobs list --address http://head:8265
    """
    from recray.runtime.jobs import Jobs

    found = Jobs(address).list()
    ui.result(results.JobList(jobs=found), terminal.jobs(found))


@jobs.command("logs")
@click.argument("name")
@click.option("--follow", is_flag=True, help="Until it ends, and exit as it does.")
@dashboard
@shared()
def jobs_logs(ui: Console, name: str, follow: bool, address: str | None) -> None:
    """Print what the job NAME has printed.

    \b
    Example:
        recray jobs logs train-20260102-030405-6789 --follow
    """
    from recray.runtime.jobs import Jobs

    client = Jobs(address)
    if follow:
        _follow(ui, client, name)
        return
    log = client.log(name)
    text = log.rstrip("\n") or f"{name} has printed nothing yet"
    ui.result(results.JobLog(job=name, log=log), text)


@jobs.command("stop")
@click.argument("name")
@dashboard
@shared()
def jobs_stop(ui: Console, name: str, address: str | None) -> None:
    """Stop the job NAME: it has 20 s to end by itself.

    \b
    Example:
        recray jobs stop train-20260102-030405-6789
    """
    from recray.runtime.jobs import Jobs

    job = Jobs(address).stop(name)
    ui.result(_state(job), f"job {name} {job.status.lower()}")


# ------------------------------------------------------------------ checks and figures


@cli.command()
@click.option("--storage", metavar="DIR", help="Folder or URI of outputs.  [default: this folder]")
@click.option("--data", metavar="SOURCE", help="Data set that the memory is to hold.")
@shared("workers", "port", "address")
def doctor(
    ui: Console, storage: str | None, data: str | None, workers: int, port: int, address: str
) -> None:
    """Check versions, storage, data, ports, token, dashboard, GPUs and memory of every node.

    Exit 1 if there is a problem; each line says what to do.

    \b
    Example:
        recray doctor
        recray doctor --address 10.0.0.5:6379 --storage /mnt/shared --data ml-25m --workers 4
    """
    from recray.pipelines import doctor as checks

    result = checks.diagnose(checks.Plan(storage, data, workers, port), address)
    ui.result(result, result.text())
    click.get_current_context().exit(1 if result.problems else 0)


@cli.command()
@click.argument("name")
@click.option("--quick", is_flag=True, help="Leave out what takes long; under 3 minutes.")
@click.option(
    "--data",
    type=PATH,
    metavar="FOLDER",
    help="next, quality, search, store, train, tune: archives such as ml-100k.zip.",
)
@click.option(
    "--only",
    metavar="FIGURE",
    help="next, quality, store: one figure, such as rmse_1m; scale: formulas, workers or largest; "
    "serve: ann; train: implicit.",
)
@click.option("--device", metavar="DEVICE", help="train: cpu (the default) or cuda.")
@shared()
def benchmark(ui: Console, name: str, quick: bool, **options: str | None) -> None:
    """Run the benchmark NAME: evaluate, ingest, next, quality, scale, search, serve, store, train
    or tune.

    \b
    Example:
        recray benchmark ingest --quick
        recray benchmark evaluate --quick
    """
    from recray import benchmarks

    result = benchmarks.run(name, quick, ui.log, **options)
    # A benchmark on the CPU says nothing of a GPU.
    dumped = result.model_dump(exclude=set() if result.gpu else {"gpu"})
    ui.result(dumped, terminal.benchmark(name, dumped))
