"""Lines of the log: to the real stderr of a replica, and shown by who serves."""

import io
import json
import sys

import pytest

from recray.serving.log import ShownLogs, log


def test_a_line_passes_by_what_stands_for_stderr(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    log(event="model_swapped", version="a")
    line = json.loads(capfd.readouterr().err)
    assert list(line) == ["time", "event", "version"]
    assert sys.stderr.getvalue() == ""


@pytest.fixture
def replica(tmp_path):
    """The file that takes the stderr of a replica."""
    file = tmp_path / "worker-1-2-3.err"
    file.write_text('{"time": "1", "event": "of an earlier service"}\n')
    return file


def write(file, text, mode="a"):
    with file.open(mode) as stream:
        stream.write(text)


def shown(capsys) -> list[str]:
    return [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]


def test_lines_of_the_replicas_are_shown_once_and_whole(replica, tmp_path, capsys):
    with ShownLogs(tmp_path) as logs:
        write(replica, ':actor_name:ServeReplica\n{"time": "2", "event": "a"}\n{"time": "3", ')
        write(tmp_path / "worker-4-5-6.err", '{"time": "2.5", "event": "b"}\n')
        write(tmp_path / "worker-1-2-3.out", '{"time": "2", "event": "not of the log"}\n')
        logs.show()
        write(replica, '"event": "c"}\n')
        logs.show()
        write(replica, '{"time": "4", "event": "last"}\n')
    assert shown(capsys) == ["a", "b", "c", "last"]


def test_a_file_that_ray_begins_anew_is_read_from_its_start(replica, tmp_path, capsys):
    with ShownLogs(tmp_path):
        write(replica, '{"time": "1", "event": "new"}\n', "w")
    assert shown(capsys) == ["new"]


def test_nothing_is_lost_where_ray_begins_another_file(replica, tmp_path, capsys):
    with ShownLogs(tmp_path) as logs:
        write(replica, '{"time": "1", "event": "a"}\n')
        logs.show()
        write(replica, '{"time": "2", "event": "b"}\n')
        replica.rename(f"{replica}.1")
        write(replica, '{"time": "3", "event": "c"}\n')
        logs.show()
        write(replica, '{"time": "4", "event": "d"}\n')
    assert shown(capsys) == ["a", "b", "c", "d"]
