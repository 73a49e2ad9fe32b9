"""What a job is sent, and how a cluster that cannot take it is answered; no Ray is started."""

import json
import subprocess
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from recray.cli import cli
from recray.cli.base import StoragePath, default_out
from recray.cli.cluster import _checked
from recray.errors import RecrayError
from recray.runtime import jobs as api
from recray.runtime.jobs import Job, Jobs
from recray.runtime.session import own_address
from recray.runtime.working_folder import packed, working_files


@pytest.fixture
def folder(tmp_path):
    """A checkout as people have it: work beside data, outputs, secrets and environments."""
    for name in (
        "jobs/train.py",
        "jobs/mine.py",
        "recray/__init__.py",
        "notes.md",
        "ratings.csv",
        "ml-1m.zip",
        ".env",
        ".git/config",
        "server.key",
        "docker/secrets/ray_token",
        "env/pyvenv.cfg",
        "env/lib/torch.py",
        "lists/manifest.json",
        "lists/readme.txt",
        "runs/a/run.json",
        "runs/a/log.txt",
        "registry/promotions/000001.json",
        "registry/x.txt",
        "recray/__pycache__/x.pyc",
        "recray-out/x.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
    (tmp_path / "linked").symlink_to("/etc")
    return tmp_path


def test_a_job_gets_the_work_and_neither_data_nor_outputs_nor_secrets(folder):
    names = [str(name) for name in working_files(folder)]
    assert names == ["jobs/mine.py", "jobs/train.py", "notes.md", "recray/__init__.py"]
    with packed(folder) as copy:
        assert [str(name) for name in working_files(copy)] == names
    assert not copy.exists()


def test_a_folder_over_the_limit_is_refused_with_its_largest_file(folder):
    (folder / "big.txt").write_bytes(b"x" * 3000)
    with (
        pytest.raises(RecrayError, match=r"at most .* can be sent.*big\.txt"),
        packed(folder, 2000),
    ):
        pass


@pytest.mark.parametrize(
    ("status", "exit_code", "given_on"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 3, 3),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 143),
    ],
)
def test_the_exit_status_is_that_of_the_job(status, exit_code, given_on):
    assert Job("a", status, "x", "", None, None, exit_code).status_code == given_on


def test_paths_outside_the_working_folder_are_whole_and_the_others_stay(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "ranking").mkdir()  # a folder that is called as the preset is
    words = ("lists", "--out=runs/b", "--preset", "ranking", "--config", "notes.md", "--workers=3")
    assert _checked("train", words, {"notes.md"}) == (
        [
            f"{folder}/lists",
            f"--out={folder}/runs/b",
            "--preset",
            "ranking",
            "--config",
            "notes.md",
            "--workers=3",
        ],
        3,
    )
    words = ("ml-100k", "--out", "s3://bucket/x")
    assert _checked("prepare", words, set()) == (list(words), 1)
    assert _checked("pipeline", ("ml-1m.zip",), set())[0] == [f"{folder}/ml-1m.zip"]
    assert _checked("mine", ("lists", "-x"), set()) == (["lists", "-x"], 1)


@pytest.mark.parametrize(
    ("job", "words", "sent"),
    [
        ("benchmark", "evaluate --quick --data lists", "evaluate --quick --data {}/lists"),
        ("evaluate", "ml-100k --kfold 5", "ml-100k --kfold 5"),
        ("evaluate", "lists --negatives n.csv", "{0}/lists --negatives {0}/n.csv"),
        ("tune", "--resume lists", "--resume {}/lists"),
        ("retrain", "registry ml-1m.zip --out x", "{0}/registry {0}/ml-1m.zip --out {0}/x"),
    ],
)
def test_what_is_a_path_is_said_by_the_type_of_its_parameter(folder, monkeypatch, job, words, sent):
    monkeypatch.chdir(folder)
    assert _checked(job, tuple(words.split()), set())[0] == sent.format(folder).split()


def test_every_parameter_of_a_job_that_its_help_calls_a_place_is_a_path():
    places = {"BUNDLE", "DIR", "FILE", "FOLDER", "PREPARED", "REGISTRY", "RUN", "SWEEP", "SOURCE"}
    jobs = "benchmark evaluate pipeline prepare recommend refresh train tune".split()
    for job in jobs:
        for parameter in cli.commands[job].params:
            named = str(parameter.metavar or parameter.name).strip("[]").upper()
            if places & set(named.split("|")):
                assert isinstance(parameter.type, StoragePath), f"{job}: {parameter.name}"


def test_options_are_checked_before_anything_is_sent(folder):
    with pytest.raises(click.UsageError, match="out"):
        _checked("train", ("prepared",), set())
    done = CliRunner().invoke(cli, ["submit", "trian", "--working-dir", str(folder)])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "known are mine, train" in done.stderr


def test_a_job_takes_its_own_cluster_and_no_folder_that_goes_with_it(monkeypatch):
    monkeypatch.delenv("RECRAY_OUT", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert (own_address(), default_out("x")) == ("local", "recray-out/x")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert own_address() == "auto"
    with pytest.raises(RecrayError, match="give --out"):
        default_out("x")
    monkeypatch.setenv("RECRAY_OUT", "/mnt/out/")
    assert default_out("x") == "/mnt/out/x"


# ------------------------------------------------------------------------------ the dashboard


class _Dashboard(BaseHTTPRequestHandler):
    version, taken = "2.60.0", ()

    def do_GET(self):
        given = self.headers.get("Authorization")
        if given != f"Bearer {'a' * 32}":
            self._reply(401 if given is None else 403, {})
        elif self.path.startswith("/api/version"):
            self._reply(200, {"ray_version": self.version})
        else:
            jobs = [{"type": "SUBMISSION", "submission_id": name, "status": "RUNNING"}
                    for name in self.taken]  # fmt: skip
            self._reply(200, [job | {"entrypoint": "x"} for job in jobs])

    def _reply(self, status, value):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def dashboard(monkeypatch):
    """Runs a dashboard that asks for a token, which the environment has."""
    from ray._raylet import AuthenticationTokenLoader

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 32)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    AuthenticationTokenLoader.instance().reset_cache()  # Ray keeps the first token of a process
    handler = type("Handler", (_Dashboard,), {})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    AuthenticationTokenLoader.instance().reset_cache()


@pytest.mark.parametrize(
    ("header", "status"), [({}, "401"), ({"Authorization": "Bearer b"}, "403")]
)
def test_a_refused_token_says_which_way(dashboard, monkeypatch, header, status):
    monkeypatch.setattr(api, "_headers", lambda: header)
    with pytest.raises(RecrayError, match=status):
        Jobs(dashboard[1])


def test_another_ray_and_no_cluster_are_refused_in_one_line(dashboard, monkeypatch):
    monkeypatch.setattr(api, "_headers", lambda: {"Authorization": f"Bearer {'a' * 32}"})
    dashboard[0].version = "2.9.0"
    with pytest.raises(RecrayError, match=r"runs Ray 2\.9\.0.*install ray==2\.9\.0"):
        Jobs(dashboard[1])
    with pytest.raises(RecrayError, match="no Ray dashboard answers"):
        Jobs("127.0.0.1:1")
    with pytest.raises(RecrayError, match="give http://HOST:PORT"):
        Jobs("ray://127.0.0.1:10001")


@pytest.fixture
def client(dashboard, monkeypatch):
    """A client whose cluster has the job `nightly`."""
    header = {"Authorization": f"Bearer {'a' * 32}"}
    monkeypatch.setattr(api, "_headers", lambda: header)
    dashboard[0].taken = ("nightly",)
    made = Jobs(dashboard[1])
    made._client._headers = header
    return made


@pytest.mark.parametrize(
    ("name", "word", "words"),
    [
        ("nightly", "x", "nightly is taken by a job that is RUNNING"),
        ("a b", "x", "letters, digits"),
        ("new", "s3://key:secret@bucket/x", "credentials"),
        ("new", "s3://bucket/x?secret_key=abc", "credentials"),
    ],
)
def test_a_job_with_a_taken_name_or_a_secret_is_not_sent(client, folder, name, word, words):
    with pytest.raises(RecrayError, match=words):
        client.submit(["python", "jobs/train.py", word], folder, name)


def test_an_unknown_job_is_named_with_the_last_ones(client):
    with pytest.raises(RecrayError, match=r"no job .x..*nightly"):
        client.get("x")


class _Restarting:
    """A client of a dashboard that is away after the first half of the log, three times."""

    def __init__(self):
        self.away = 0

    async def tail_job_logs(self, _name):
        if not self.away:
            self.away = 3
            yield "first\n"
            raise RuntimeError("broken")

    def list_jobs(self):
        if self.away > 1:
            self.away -= 1
            raise RuntimeError("refused")
        status = types.SimpleNamespace(value="SUCCEEDED" if self.away else "RUNNING")
        return [
            types.SimpleNamespace(
                submission_id="nightly", status=status, entrypoint="x", message="",
                start_time=1000, end_time=2000, driver_exit_code=0,
            )
        ]  # fmt: skip

    def get_job_logs(self, _name):
        return "first\nsecond\n"


def test_a_log_is_followed_through_a_restart_of_the_dashboard(client, monkeypatch):
    monkeypatch.setattr(api, "POLL_S", 0.0)
    client._client, printed = _Restarting(), []
    assert client.follow("nightly", printed.append).status == "SUCCEEDED"
    assert printed == ["first\n", "second\n"]
    client._client = _Restarting()
    monkeypatch.setattr(api, "RECONNECT_S", -1.0)
    with pytest.raises(RecrayError, match="refused"):
        client.follow("nightly", printed.append)


@pytest.mark.parametrize("job", ["prepare", "train", "tune", "evaluate", "recommend", "pipeline"])
def test_a_job_script_takes_the_options_of_its_command(job, tmp_path):
    script = Path(__file__).parent.parent / "jobs" / f"{job}.py"
    missing = str(tmp_path / "none")
    words = [missing, "--out", str(tmp_path / "out")][: 1 if job == "evaluate" else None]
    command = [sys.executable, str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert missing in done.stderr.splitlines()[-1]
