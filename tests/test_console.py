"""What people see: tables that fit, a sign of life, and next steps."""

import re
import sys
import time
from collections import Counter

import pytest
from click.testing import CliRunner

from recray import progress
from recray.cli import cli
from recray.pipelines.stages import Running
from recray.progress import Console, StageProgress
from recray.reporting import terminal as console

COLUMNS = ["film", "genres", "score"]
ROWS = [["A long title of a film (1994)", "Drama", "0.5"], ["B", "Action, Adventure", "0.25"]]


def test_without_a_terminal_a_table_is_as_wide_as_its_content(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = console.table("", COLUMNS, ROWS).splitlines()
    assert lines[0] == "film                                      genres  score"
    assert lines[2].endswith("Drama    0.5")


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_table_fits_a_narrow_terminal_and_loses_no_column(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [[f"metric {n}", *(f"{n + place / 10:.4f}" for place in range(9))] for n in range(3)]
    columns = ["metric", *(f"column {place}" for place in range(9))]
    title = "A title that is much longer than forty columns are"
    text = console.table(title, columns, rows)
    assert max(map(len, text.splitlines())) <= width
    body = text.replace("-", "")  # without the rule below the head
    cells = title + "".join([*columns, *(cell for row in rows for cell in row)])
    assert Counter("".join(body.split())) == Counter(cells.replace(" ", ""))


def test_long_cells_go_on_in_further_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    row = ["x" * 60, "Action, Adventure, Comedy, Documentary", "0.5"]
    text = console.table("", COLUMNS, [row])
    assert max(map(len, text.splitlines())) <= 40
    assert text.count("x") == 60
    assert text.splitlines()[2].endswith("Action,    0.5")
    assert all(genre in text for genre in row[1].replace(",", "").split())


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    started, stopped = [], []

    class Spinner:
        task_ids = (0,)

        def __init__(self, words):
            self.words = words

        def update(self, _task, description):
            self.words = description

        def start(self):
            started.append(self.words)

        def stop(self):
            stopped.append(self.words)

    monkeypatch.setattr(progress, "_spinner", Spinner)
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.05)
    return started, stopped


STAGE = StageProgress("scan", 2, 4, 3_000_000, 1.5)


def test_without_a_terminal_a_stage_is_a_line_at_its_end(capsys):
    ui = Console(True)
    for done in (1, 2, 3, 4):
        ui.stage(STAGE._replace(done=done))
    ui.stage(StageProgress("split", 1, 1, None, 0.25))
    out, err = capsys.readouterr()
    assert not out, "stdout is for the JSON object"
    assert [line.partition("s] ")[2] for line in err.splitlines()] == [
        "scan: 4 tasks  3,000,000 rows  2M rows/s  1.50 s",
        "split: 1 task  0.25 s",
    ]


def test_a_terminal_shows_one_bar_which_each_stage_takes_over(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bars, states = [], []

    class Bar:
        task_ids = (0,)

        def __init__(self, *_columns, **_options):
            bars.append(self)
            self.running = False

        def add_task(self, words, total, numbers):
            self.words, self.total = words, total

        def update(self, _task, completed, numbers):
            running = [bar.words for bar in bars if bar.running]
            states.append((running, completed, self.total, numbers))

        def start(self):
            self.running = True

        def stop(self):
            self.running = False

    monkeypatch.setattr(progress, "_progress", Bar)
    ui = Console(True)
    ui.stage(STAGE)
    ui.stage(STAGE._replace(done=4, rows=6_000_000, seconds=2.0))
    ui.stage(StageProgress("split", 0, 8, None, 0.0))
    ui.close()
    assert states == [
        (["scan"], 2, 4, "3,000,000 rows  2M rows/s"),
        (["scan"], 4, 4, "6,000,000 rows  3M rows/s"),
        (["split"], 0, 8, ""),
    ]
    assert not any(bar.running for bar in bars)
    out, err = capsys.readouterr()
    assert not out + err


def wait_for(found: list[str]) -> None:
    while not found:
        time.sleep(0.01)


def test_a_silent_command_shows_that_it_works_and_stops_when_it_tells(terminal):
    started, stopped = terminal
    ui = Console(False, "recray evaluate")
    with ui.during("measure"):
        wait_for(started)
        assert started == ["measure"]
    ui.close()
    assert stopped == ["recray evaluate"]


def test_a_quick_command_shows_no_spinner(terminal):
    started, stopped = terminal
    ui = Console(False, "x")
    ui.close()
    time.sleep(0.2)
    assert not started
    assert not stopped


def test_up_ends_with_what_to_do_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = Running(
        evaluation=None,
        seconds={"prepare": 1.0},
        verification={"verified": True, "users": 3, "differences": [], "model_version": "x"},
        verified=True,
        url="http://127.0.0.1:8000",
        prepared=f"{tmp_path}/out/prepared",
        bundle=f"{tmp_path}/out/bundle",
        example_user=4,
    )
    text = result.text()
    for line in ("recray explain out/bundle --user 4", "recray report out/bundle --open",
                 "recray tune out/prepared --out sweeps/first"):  # fmt: skip
        assert f"{line}\n" in text


def test_the_version_names_ray_and_torch():
    shown = CliRunner().invoke(cli, ["--version"]).stdout
    assert re.fullmatch(r"recray \S+ \(ray 2\S+, torch 2\S+, Python 3\S+\)\n", shown)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(shell):
    assert "_RECRAY_COMPLETE" in CliRunner().invoke(cli, ["completion", shell]).stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("recray tra", "train"),
        ("recray up ml-1", "ml-100k"),
        ("recray up sample --preset ra", "ranking"),
        ("recray train x --set train.ep", "train.epochs="),
    ],
)
def test_tab_offers(words, offered, monkeypatch):
    from click.shell_completion import BashComplete

    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert f"plain,{offered}" in BashComplete(cli, {}, "recray", "_C").complete().splitlines()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Did you mean 'train'"),
        (["data", "fech"], "Did you mean 'fetch'"),
        (["up", "sample", "--wrokers", "2"], "Did you mean '--workers'"),
        (["up", "sample", "--preset", "rankign"], "did you mean 'ranking'"),
        (["up", "sample", "--set", "train.epoch=5"], "did you mean train.epochs?"),
        (["train", "x", "--out", "y", "--set", "train.rows=train"], "called train.fit_on now"),
        (
            ["train", "x", "--out", "y", "--set", "objective.kind=whole-data"],
            "objective.kind=whole-data is called objective.kind=ials now",
        ),
    ],
)
def test_what_is_misspelt_or_renamed_is_one_line_with_the_name_that_is_meant(arguments, words):
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    (line,) = [line for line in done.output.splitlines() if line.startswith("Error:")]
    assert words in line
