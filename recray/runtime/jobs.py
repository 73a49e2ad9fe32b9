"""THE JOBS API: submit a script to a cluster, follow its log, stop it.

A job gets the working folder without data, outputs and environments, and none of the caller's
environment. Secrets reach the nodes by files and roles of their own.
"""

import asyncio
import contextlib
import os
import re
import shlex
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import AliasPath, BaseModel, Field

from recray.errors import RecrayError
from recray.runtime.environment import switched
from recray.runtime.loopback import not_proxied, open_url
from recray.runtime.nodes import capacity_of
from recray.runtime.ray_start import auth_token
from recray.runtime.ray_switches import JOB_SWITCHES
from recray.runtime.session import quieten, set_token_mode
from recray.runtime.working_folder import packed

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ADDRESS = "http://127.0.0.1:8265"
STOPPED = 143
"""Exit status of a job that was stopped: 128 + SIGTERM."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
POLL_S = 0.5
RECONNECT_S = 60.0
"""How long a dashboard may be away, such as while it restarts, before a log is given up."""
_CREDENTIALS = re.compile(r"://[^/@\s]*:[^/@\s]+@|(secret|password|token|access_key)\w*=", re.I)


@dataclass(frozen=True)
class Job:
    """A job, as the cluster reports it.

    Args:
        name: Its submission id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        command: The command that runs.
        message: What the cluster says about its state.
        started: When it started, as ISO 8601; None before.
        seconds: How long it has run.
        exit_code: The exit code of its process; None before its end.
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
        """Whether the job has ended, in whatever way."""
        return self.status in ENDED

    @property
    def status_code(self) -> int:
        """The exit status to pass on: the job's own, or 128 + n where signal n ended it."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return STOPPED
        code = self.exit_code
        return 1 if not code else code if code > 0 else 128 - code


class _Version(BaseModel):
    """What the dashboard says about its Ray."""

    ray_version: str = "of an unknown version"


class _NodeRow(BaseModel):
    state: str
    resources_total: dict[str, float]


class _Nodes(BaseModel):
    """The nodes of the cluster, as the dashboard lists them."""

    rows: list[_NodeRow] = Field(validation_alias=AliasPath("data", "result", "result"))


Reply = TypeVar("Reply", bound=BaseModel)


class Jobs:
    """The jobs of a cluster.

    Args:
        address: Its dashboard, as http://HOST:PORT. The default is what Ray's own commands take:
            RAY_API_SERVER_ADDRESS, or the dashboard of this machine.

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
        import ray

        theirs = self._get("/api/version", _Version).ray_version
        if theirs != ray.__version__:
            raise RecrayError(
                f"the cluster at {self.address} runs Ray {theirs}, this is Ray {ray.__version__}; "
                f"install ray=={theirs} here, or the same version on every node"
            )
        self._client = self._connect()

    def _get(self, path: str, reply: type[Reply]) -> Reply:
        """Ask the dashboard, and wait no longer than 5 s.

        Raises:
            RecrayError: It does not answer, or refuses.
        """
        request = urllib.request.Request(self.address + path, headers=self._headers)
        try:
            with open_url(request, timeout_s=5) as answer:
                return reply.model_validate_json(answer.read())
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
        # In Ray these two variables overrule the address that its client is called with.
        names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
        with not_proxied(self.address), switched(dict.fromkeys(names), overrule=True):
            return JobSubmissionClient(self.address)

    def cpus(self) -> int:
        """Logical CPUs of all nodes, or those that the cluster may grow to."""
        rows = self._get("/api/v0/nodes?limit=10000", _Nodes).rows
        return capacity_of(row.resources_total for row in rows if row.state == "ALIVE").max_cpus

    def submit(
        self, command: list[str], folder: Path, name: str | None = None, out: str | None = None
    ) -> str:
        """Send the working folder, start a command in it, and return the job's name.

        Args:
            command: The command, word by word.
            folder: The working folder.
            name: A name that no job of the cluster has had. The default is made of the script's
                name and the time.
            out: Folder of outputs, for commands that name none.

        Raises:
            RecrayError: The name is taken or is not allowed, the folder is too large, or a word of
                the command holds a secret. Everyone who sees the job would see the secret.
        """
        name = name or _new_name(command)
        self._refuse_name(name)
        for word in command:
            if _CREDENTIALS.search(word):
                raise RecrayError(
                    "an argument holds credentials, which the dashboard would show; leave them "
                    "out: nodes get theirs from a role, or from files of their own"
                )
        variables = JOB_SWITCHES | ({"RECRAY_OUT": out} if out else {})
        with packed(folder) as copy, _errors_in_one_line(self.address):
            self._client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=name,
                runtime_env={"working_dir": str(copy), "env_vars": variables},
            )
        return name

    def _refuse_name(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise RecrayError(
                f"--name {name!r}: letters, digits, dots, dashes and underscores, 64 at most"
            )
        for job in self.list():
            if job.name == name:
                raise RecrayError(
                    f"--name {name} is taken by a job that is {job.status}; give another name "
                    "(with the same --out it goes on with the same run)"
                )

    def list(self) -> list[Job]:
        """The submitted jobs of the cluster, oldest first."""
        with _errors_in_one_line(self.address):
            found = [_job(facts) for facts in self._client.list_jobs() if facts.submission_id]
        return sorted(found, key=lambda job: (job.started or "9", job.name))

    def get(self, name: str) -> Job:
        """Find a job by its name.

        Raises:
            RecrayError: The cluster has no job of that name.
        """
        jobs = self.list()
        for job in jobs:
            if job.name == name:
                return job
        known = ", ".join(job.name for job in jobs[-5:]) or "none"
        raise RecrayError(f"no job {name!r} at {self.address}; the last ones are {known}")

    def log(self, name: str) -> str:
        """Fetch all that a job has printed until now."""
        self.get(name)
        with _errors_in_one_line(self.address):
            return str(self._client.get_job_logs(name))

    def stop(self, name: str, timeout_s: float = 40.0) -> Job:
        """Tell a job to stop, and wait for its end, but no longer than the timeout."""
        if not self.get(name).ended:
            with _errors_in_one_line(self.address):
                self._client.stop_job(name)
        end = time.monotonic() + timeout_s
        while not (job := self.get(name)).ended and time.monotonic() <= end:
            time.sleep(POLL_S)
        return job

    def follow(self, name: str, emit: Callable[[str], None]) -> Job:
        """Pass on what a job prints until it ends.

        A connection that breaks is opened again, and a dashboard that restarts is waited for.

        Args:
            name: The job.
            emit: Gets each piece of the log, as it is printed.

        Returns:
            The job at its end.
        """
        self.get(name)
        emitted = 0  # characters

        async def tail() -> None:
            nonlocal emitted
            seen = 0  # a new connection sends the log from its beginning
            async for lines in self._client.tail_job_logs(name):
                new = lines[max(emitted - seen, 0) :]
                seen += len(lines)
                if new:
                    emitted = seen
                    emit(new)

        while True:
            with contextlib.suppress(RuntimeError, OSError):  # the connection broke
                asyncio.run(tail())
            job = self._get_patiently(name)
            if job.ended:
                if rest := self.log(name)[emitted:]:
                    emit(rest)
                return job
            time.sleep(POLL_S)

    def _get_patiently(self, name: str) -> Job:
        """Find a job, and ask again while the dashboard does not answer."""
        end = time.monotonic() + RECONNECT_S
        while True:
            try:
                return self.get(name)
            except RecrayError:
                if time.monotonic() > end:
                    raise
            time.sleep(POLL_S)


def _headers() -> dict[str, str]:
    """The token as a header; empty where there is no token."""
    token = auth_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextlib.contextmanager
def _errors_in_one_line(address: str) -> Iterator[None]:
    """Turn what the Jobs API raises into one line.

    Raises:
        RecrayError: It raised something.
    """
    import ray.exceptions
    import requests

    try:
        with not_proxied(address):
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


def _new_name(command: list[str]) -> str:
    base = next((Path(word).stem for word in command if word.endswith(".py")), "job")
    return f"{base}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
