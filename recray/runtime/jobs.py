"""THE JOBS API: submit a script to a cluster, follow its log, stop it.

A job gets the working folder without data, outputs and environments, and none of the caller's
environment: what is secret reaches the nodes by files and roles of their own.
"""

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recray.errors import RecrayError
from recray.runtime.nodes import capacity_of
from recray.runtime.ray_private import JOB_SWITCHES, quieten, set_token_mode
from recray.runtime.session import auth_token

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ADDRESS = "http://127.0.0.1:8265"
UPLOAD_BYTES = 100 << 20
"""What Ray's dashboard takes."""
STOPPED = 143
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Data and outputs, by what they are; and keys, whatever their folder.
_NOT_WORK = (
    ".arrow .csv .dat .gz .h5 .npy .npz .parquet .pt .safetensors .tar .tsv .whl .zip .key .pem"
).split()
_NEVER = ("__pycache__", "node_modules", "recray-out", "secrets")
_OUTPUTS = ("manifest.json", "run.json", "pyvenv.cfg", "current.json")
"""A folder that holds one of these is an output of ours or a virtual environment."""
_CREDENTIALS = re.compile(r"://[^/@\s]*:[^/@\s]+@|(secret|password|token|access_key)\w*=", re.I)


@dataclass(frozen=True)
class Job:
    """A job as the cluster tells of it.

    Args:
        name: Its submission id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        command: What runs.
        message: What the cluster says of it.
        started: When, as ISO 8601; None before.
        seconds: How long it has run.
        exit_code: That of its process; None before its end.
    """

    name: str
    status: str
    command: str
    message: str
    started: str | None
    seconds: float | None
    exit_code: int | None

    @property
    def ended(self) -> bool:
        """Whether it has come to its end."""
        return self.status in ENDED

    @property
    def status_code(self) -> int:
        """The exit status to give on: the job's own, 128 + n where a signal n ended it."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return STOPPED
        code = self.exit_code
        return 1 if not code else code if code > 0 else 128 - code


# ------------------------------------------------------------------------------ working folder


def working_files(folder: Path) -> list[Path]:
    """The files that a job gets, relative to the folder, sorted.

    Left out: what is hidden, data and archives by their endings, keys, links, and every folder that
    is an output of ours or a virtual environment, whatever its name.
    """
    found = []
    for place, folders, files in os.walk(folder):
        inside = Path(place)
        folders[:] = [name for name in sorted(folders) if _is_work(inside / name)]
        found += [
            (inside / name).relative_to(folder)
            for name in files
            if not name.startswith(".")
            and not name.endswith(tuple(_NOT_WORK))
            and not (inside / name).is_symlink()
        ]
    return sorted(found)


def _is_work(folder: Path) -> bool:
    if folder.name.startswith(".") or folder.name in _NEVER:
        return False
    if folder.is_symlink() or folder.name.endswith(".egg-info"):
        return False
    return not any((folder / name).is_file() for name in _OUTPUTS)


@contextlib.contextmanager
def packed(folder: Path, limit: int = UPLOAD_BYTES) -> Iterator[Path]:
    """A copy of the working files of a folder while the block runs.

    Raises:
        RecrayError: They are more than can be sent.
    """
    files = working_files(folder)
    sizes = {name: (folder / name).stat().st_size for name in files}
    total = sum(sizes.values())
    if total > limit:
        largest = max(sizes, key=lambda name: sizes[name])
        raise RecrayError(
            f"the working folder {folder} has {total / 2**20:,.0f} MiB, at most "
            f"{limit / 2**20:,.0f} can be sent: move data out of it; the largest file is {largest} "
            f"({sizes[largest] / 2**20:,.0f} MiB)"
        )
    with tempfile.TemporaryDirectory(prefix="recray-job-") as temporary:
        for name in files:
            target = Path(temporary) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target)
        yield Path(temporary)


# ----------------------------------------------------------------------------------- the cluster


class Jobs:
    """The jobs of a cluster.

    Args:
        address: Its dashboard, as http://HOST:PORT; by default the one Ray's own commands would
            take, RAY_API_SERVER_ADDRESS, or that of this machine.

    Raises:
        RecrayError: Nothing answers there, it refuses the token, or it runs another Ray.
    """

    def __init__(self, address: str | None = None) -> None:
        chosen = address or os.environ.get("RAY_API_SERVER_ADDRESS") or ADDRESS
        self.address = (chosen if "://" in chosen else f"http://{chosen}").rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise RecrayError(
                f"--address {address}: jobs go to the dashboard; give http://HOST:PORT, "
                f"such as {ADDRESS}"
            )
        set_token_mode()
        self._headers = _headers()
        self._refuse_another_ray()
        self._client = self._connect()

    def _refuse_another_ray(self) -> None:
        import ray

        told = self._get("/api/version")
        theirs = str(told.get("ray_version"))
        if theirs != ray.__version__:
            raise RecrayError(
                f"the cluster at {self.address} runs Ray {theirs}, this is Ray {ray.__version__}; "
                f"install ray=={theirs} here, or the same version on every node"
            )

    def _get(self, path: str) -> Any:
        """Ask the dashboard, without waiting for long.

        Raises:
            RecrayError: It does not answer, or refuses.
        """
        request = urllib.request.Request(self.address + path, headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise self._refused(error.code, path) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise RecrayError(
                f"no Ray dashboard answers at {self.address}: {reason}; start a cluster with "
                "`ray start --head`, or give --address http://HOST:8265"
            ) from error

    def _refused(self, status: int, path: str) -> RecrayError:
        if status == 401:
            return RecrayError(
                f"{self.address} asks for a token (401) and none was found; put the cluster's into "
                "~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
            )
        if status == 403:
            return RecrayError(
                f"{self.address} refuses the token (403); take the cluster's own: RAY_AUTH_TOKEN, "
                "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, the first that is set"
            )
        return RecrayError(f"{self.address}{path} answers {status}: it is no dashboard of Ray")

    def _connect(self) -> "JobSubmissionClient":
        from ray.job_submission import JobSubmissionClient

        quieten()
        # Ray lets these two overrule an address that is given.
        names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
        hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
        try:
            return JobSubmissionClient(self.address)
        finally:
            os.environ.update(hidden)

    def cpus(self) -> int:
        """Logical CPUs of all nodes, or those that the cluster may come to have."""
        told = self._get("/api/v0/nodes?limit=10000")
        rows = told["data"]["result"]["result"]
        return capacity_of(row["resources_total"] for row in rows if _alive(row)).max_cpus

    def submit(
        self, command: list[str], folder: Path, name: str | None = None, out: str | None = None
    ) -> str:
        """Send the working folder and start a command in it; return the job's name.

        Args:
            command: What runs, word by word.
            folder: The working folder.
            name: A name that no job of the cluster has had; by default made of the script and time.
            out: Folder of outputs for which the command names none.

        Raises:
            RecrayError: The name is taken or no name, the folder is too large, or a word of the
                command holds a secret, which everyone who sees the job would see.
        """
        name = name or _fresh(command)
        self._refuse_name(name)
        for word in command:
            if _CREDENTIALS.search(word):
                raise RecrayError(
                    "an argument holds credentials, which the dashboard would show; leave them "
                    "out: nodes get theirs from a role, or from files of their own"
                )
        variables = JOB_SWITCHES | ({"RECRAY_OUT": out} if out else {})
        with packed(folder) as copy, _answers(self.address):
            environment = {"working_dir": str(copy), "env_vars": variables}
            self._client.submit_job(
                entrypoint=shlex.join(command), submission_id=name, runtime_env=environment
            )
        return name

    def _refuse_name(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise RecrayError(
                f"--name {name!r}: letters, digits, dots, dashes and underscores, 64 at most"
            )
        taken = [job for job in self.list() if job.name == name]
        if taken:
            raise RecrayError(
                f"--name {name} is taken by a job that is {taken[0].status}; give another name "
                "(with the same --out it goes on with the same run)"
            )

    def list(self) -> list[Job]:
        """The submitted jobs of the cluster, oldest first."""
        with _answers(self.address):
            found = [_job(facts) for facts in self._client.list_jobs() if facts.submission_id]
        return sorted(found, key=lambda job: (job.started or "9", job.name))

    def get(self, name: str) -> Job:
        """One job.

        Raises:
            RecrayError: There is none of that name.
        """
        for job in self.list():
            if job.name == name:
                return job
        known = ", ".join(job.name for job in self.list()[-5:]) or "none"
        raise RecrayError(f"no job {name!r} at {self.address}; the last ones are {known}")

    def log(self, name: str) -> str:
        """What a job has printed."""
        self.get(name)
        with _answers(self.address):
            return str(self._client.get_job_logs(name))

    def stop(self, name: str, wait_s: float = 40.0) -> Job:
        """Tell a job to stop, and wait for its end."""
        job = self.get(name)
        if not job.ended:
            with _answers(self.address):
                self._client.stop_job(name)
        return self._wait(name, wait_s)

    def follow(self, name: str, tell: Callable[[str], None]) -> Job:
        """Hand on what a job prints until it ends, through broken connections; return its end."""
        self.get(name)
        told = 0

        async def tail() -> None:
            nonlocal told
            seen = 0
            async for lines in self._client.tail_job_logs(name):
                new = lines[max(told - seen, 0) :]
                seen += len(lines)
                if new:
                    told = seen
                    tell(new)

        while True:
            with contextlib.suppress(RuntimeError, OSError):  # of a connection that broke
                asyncio.run(tail())
            job = self.get(name)
            if job.ended:
                rest = self.log(name)[told:]
                if rest:
                    tell(rest)
                return job
            time.sleep(0.5)

    def _wait(self, name: str, wait_s: float) -> Job:
        end = time.monotonic() + wait_s
        while True:
            job = self.get(name)
            if job.ended or time.monotonic() > end:
                return job
            time.sleep(0.5)


def _headers() -> dict[str, str]:
    """The token as a header; none where there is no token.

    Raises:
        RecrayError: The file that is to hold it is missing or empty.
    """
    token = auth_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _alive(row: dict[str, Any]) -> bool:
    return bool(row["state"] == "ALIVE")


@contextlib.contextmanager
def _answers(address: str) -> Iterator[None]:
    """Turn what the Jobs API raises into one line.

    Raises:
        RecrayError: In its place.
    """
    import ray.exceptions
    import requests

    try:
        yield
    except (RuntimeError, requests.RequestException, ray.exceptions.RayError) as error:
        first = str(error).strip().splitlines()[0][:300]
        raise RecrayError(f"the cluster at {address} refuses: {first}") from error


def _job(facts: "JobDetails") -> Job:
    begin, end = facts.start_time, facts.end_time
    seconds = ((end or time.time() * 1000) - begin) / 1000 if begin else None
    started = datetime.fromtimestamp(begin / 1000, UTC).isoformat("T", "seconds") if begin else None
    return Job(
        str(facts.submission_id),
        str(facts.status.value),
        facts.entrypoint,
        facts.message or "",
        started,
        round(seconds, 1) if seconds is not None else None,
        facts.driver_exit_code,
    )


def _fresh(command: list[str]) -> str:
    base = next((Path(word).stem for word in command if word.endswith(".py")), "job")
    return f"{base}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
