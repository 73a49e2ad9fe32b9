"""The Ray of a process: its start, who shares it, and what is as before at its end; none starts."""

import logging
import os
import signal
import sys
import threading
import types
from pathlib import Path

import pytest

import recray
from recray.errors import RecrayError
from recray.runtime import ray_start, session
from recray.runtime.environment import (
    KeptVariables,
    QuietStdout,
    log_levels_kept,
    signal_handlers_kept,
)
from recray.runtime.ray_start import PACKAGE_FOLDER
from recray.runtime.ray_switches import temp_folder


def test_a_joined_cluster_gets_the_whole_package():
    assert [Path(folder) for folder in recray.__path__] == [PACKAGE_FOLDER]


# ------------------------------------------------------------------------------------- start


class FakeRay(types.ModuleType):
    """A Ray whose first starts fail."""

    def __init__(self, *failures):
        super().__init__("ray")
        self.failures, self.calls = list(failures), []

    def init(self, **options):
        self.calls.append(options)
        if self.failures:
            raise self.failures.pop(0)

    def shutdown(self):
        self.calls.append("shutdown")


@pytest.fixture
def fake_ray(monkeypatch):
    def put(*failures):
        fake = FakeRay(*failures)
        monkeypatch.setitem(sys.modules, "ray", fake)
        return fake

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return put


SLOW = Exception("The current node timed out\nduring startup.")


def test_a_start_that_fails_once_is_tried_again(fake_ray, caplog):
    ray = fake_ray(SLOW)
    ray_start.start("local", 4)
    first, between, second = ray.calls
    assert (first, between) == (second, "shutdown")
    assert first["num_cpus"] == 4
    assert "is tried once more: The current node timed out during startup." in caplog.text


@pytest.mark.parametrize("error", [SLOW, OSError("AF_UNIX path length"), KeyError("x")])
def test_a_start_that_fails_twice_is_one_line(fake_ray, error):
    fake_ray(error, error)
    with pytest.raises(RecrayError, match=r"^Ray does not start on this machine, .* busy[^\n]*$"):
        ray_start.start("local", 4)


def test_a_stale_address_in_the_environment_is_named(fake_ray, monkeypatch):
    ray = fake_ray()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(RecrayError, match=r"answers at 127.0.0.1:9 \(RAY_ADDRESS; unset it if"):
        ray_start.start("auto", 4)
    ray_start.start("local", 4)
    assert ray.calls[0]["address"] == "local"


LONG = "/tmp/" + "x" * 40


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "/tmp/ray"),
        ({"TMPDIR": "/scratch/me"}, "/scratch/me/ray"),
        ({"TMPDIR": "/scratch/me", "RAY_TMPDIR": "/r"}, "/r/ray"),
        ({"TMPDIR": LONG}, "/tmp/ray"),
        ({"TMPDIR": "/tmp/" + "é" * 20}, "/tmp/ray"),
        ({"RAY_TMPDIR": LONG}, "/tmp/ray"),
    ],
)
def test_sockets_lie_where_their_paths_are_short_enough(monkeypatch, variables, folder):
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert temp_folder() == folder


def test_a_long_folder_without_a_short_one_is_refused(monkeypatch):
    monkeypatch.setenv("TMPDIR", LONG)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RecrayError, match=r"TMPDIR has 45 bytes, too many .* RAY_TMPDIR to a fold"):
        temp_folder()


def test_a_token_that_cannot_be_written_is_told_by_a_variable(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file" / "token"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    ray_start.private_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


# ----------------------------------------------------------------------------------- sharing


@pytest.fixture
def rays(monkeypatch):
    """What happens to a Ray that does nothing, and the list that says whether it runs."""
    happened, running = [], []

    def begin(stack, address, _cpus):
        happened.append(f"start {address}")
        running.append(address)
        stack.callback(lambda: happened.append(f"end {running.pop()}"))

    monkeypatch.setattr(session, "_begin", begin)
    monkeypatch.setattr(session, "ray_runs", lambda: bool(running))
    monkeypatch.setattr(session, "_own_ray", session._OwnRay())
    return happened, running


def test_sessions_inside_each_other_share_one_ray(rays):
    happened, _ = rays
    with session.session(), session.session("auto"):
        assert happened == ["start local"]
    with session.session("auto"):
        pass
    assert happened == ["start local", "end local", "start auto", "end auto"]


def test_the_last_thread_to_leave_ends_it(rays):
    happened, _ = rays
    came, may_leave = threading.Event(), threading.Event()

    def other():
        with session.session():
            came.set()
            may_leave.wait(10)

    thread = threading.Thread(target=other)
    with session.session():
        thread.start()
        assert came.wait(10)
    assert happened == ["start local"], "the other thread still uses it"
    may_leave.set()
    thread.join()
    assert happened == ["start local", "end local"]


def test_a_ray_of_the_caller_is_left_alone(rays):
    happened, running = rays
    running.append("the caller's")
    with session.session():
        pass
    assert (happened, running) == ([], ["the caller's"])


def test_a_start_that_fails_leaves_nothing(rays, monkeypatch):
    happened, running = rays

    def fail(stack, *_):
        stack.callback(happened.append, "undone")
        raise RecrayError("no")

    begin = session._begin
    monkeypatch.setattr(session, "_begin", fail)
    with pytest.raises(RecrayError), session.session():
        pass
    monkeypatch.setattr(session, "_begin", begin)
    with session.session():
        assert running
    assert happened == ["undone", "start local", "end local"]


# ------------------------------------------------------------------------------- as it was


def test_only_what_the_start_changed_is_put_back(monkeypatch):
    for name in ("CHANGED", "REMOVED"):
        monkeypatch.setenv(f"RECRAY_{name}", "before")
    for name in ("NEW", "LATER", "AGAIN"):
        monkeypatch.setenv(f"RECRAY_{name}", "")
        monkeypatch.delenv(f"RECRAY_{name}")
    kept = KeptVariables()
    os.environ.update(RECRAY_CHANGED="ray", RECRAY_NEW="ray", RECRAY_AGAIN="ray")
    del os.environ["RECRAY_REMOVED"]
    kept.changed()
    os.environ.update(RECRAY_LATER="mine", RECRAY_AGAIN="mine")
    kept.restore()
    names = ("CHANGED", "REMOVED", "NEW", "LATER", "AGAIN")
    left = {name: os.environ.get(f"RECRAY_{name}") for name in names}
    assert left == {
        "CHANGED": "before",
        "REMOVED": "before",
        "NEW": None,
        "LATER": "mine",
        "AGAIN": "mine",
    }


def test_levels_of_loggers_are_put_back():
    for name, level in (("kept", 10), ("kept.a", 0)):
        logging.getLogger(name).setLevel(level)
    with log_levels_kept("kept"):
        for name in ("kept", "kept.a", "kept.new"):
            logging.getLogger(name).setLevel(logging.ERROR)
    levels = [logging.getLogger(name).level for name in ("kept", "kept.a", "kept.new")]
    assert levels == [10, 0, 0]


def test_a_handler_of_the_caller_stays_while_ray_runs(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, own := lambda *_: None)
        with signal_handlers_kept() as take_back:
            signal.signal(signal.SIGTERM, lambda *_: "ray")
            take_back()
            assert signal.getsignal(signal.SIGTERM) is own
        assert signal.getsignal(signal.SIGTERM) is own
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with signal_handlers_kept() as take_back:
            take_back()
            with pytest.raises(SystemExit, match="143"):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_off_the_main_thread_no_handler_is_touched():
    def work():
        with signal_handlers_kept() as take_back:
            take_back()
        done.append(True)

    done = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


def test_stdout_comes_back_from_blocks_that_overlap(capsys):
    quiet, before = QuietStdout(), sys.stdout
    quiet.__enter__()
    quiet.__enter__()
    print("dropped")
    quiet.__exit__()
    print("dropped, too")
    quiet.__exit__()
    assert sys.stdout is before
    print("shown")
    assert capsys.readouterr().out == "shown\n"
