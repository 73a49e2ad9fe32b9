"""The command line: thin, documented, one line for a mistake."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from recray.cli import cli
from recray.cli.base import Commands
from recray.cli.reference import command_page, result_page, result_types, settings_page
from recray.config import known_keys
from recray.pipelines.repetition import FoldReport, FoldsReport

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
TOLD = "".join(page.read_text() for page in PAGES if page.name != "commands.md")


def commands(group: click.Group, prefix: str = "recray"):
    """Every command with the words one types."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


ALL = dict(commands(cli))


@pytest.mark.parametrize("words", ALL)
def test_a_command_shows_an_example_of_itself(words):
    assert f"{words} " in f"{ALL[words].help} " or f"{words}\n" in ALL[words].help
    assert "Example" in ALL[words].help


@pytest.mark.parametrize("words", [w for w in ALL if not w.startswith("recray registry")])
def test_the_readme_or_a_page_it_leads_to_names_every_command(words):
    assert words in TOLD


def test_the_reference_of_commands_is_current():
    written = (ROOT / "docs" / "commands.md").read_text()
    assert written == f"{command_page()}\n", "run `make docs`"


def test_the_reference_of_settings_is_current():
    written = (ROOT / "docs" / "settings.md").read_text()
    assert written == f"{settings_page()}\n", "run `make docs`"


def test_the_reference_of_results_is_current():
    written = (ROOT / "docs" / "results.md").read_text()
    assert written == f"{result_page()}\n", "run `make docs`"


def test_the_reference_of_results_has_a_type_for_every_command():
    assert {f"recray {command}" for command in result_types()} == set(ALL)


@pytest.mark.parametrize(
    "row",
    [
        "| `recray evaluate` | [EvaluationReport](#evaluationreport) or [FoldsReport](",
        "| `metrics` | mapping of text to [Interval](#interval) | The model's metrics, such as",
        "| `best` | mapping of text to (whole number, or number) | Its entry in the history.",
        "| `test` | [FinalTest](#finaltest), or `null` | None where the test split was not opened.",
        "| `level` | `ok`, `warning`, `problem` |",
        "| `levels` | list of [number, whole number] | Each rating, and how often",
    ],
)
def test_the_reference_of_results_has_a_row(row):
    assert f"\n{row}" in result_page()


@pytest.mark.parametrize("key", known_keys())
def test_the_reference_says_what_a_setting_takes_and_means(key):
    (row,) = [r for r in settings_page().splitlines() if r.startswith(f"| `{key}` |")]
    cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert len(cells) == 4
    assert all(cells), row


@pytest.mark.parametrize(
    "row",
    [
        "| `model.dim` | whole number from 1 to 4,096, or `auto` | `64` | Length of the user",
        "| `split.train_file` | text, or `null` | `null` | given: the file of the training ratings",
        "| `train.device` | `auto`, `cpu`, `cuda` | `cpu` | cuda: a GPU for each worker",
        "| `model.layers` | list of whole numbers from 1 | `[128, 64, 32]` | mlp, neumf, so",
        "| `split.fold_in` | number above 0, below 1, or whole number from 1 | `0.8` | held-out",
        "| `objective.negatives` | whole number from 1, or `all`, `auto` | `4` | logistic, bpr",
    ],
)
def test_the_reference_of_settings_has_a_row(row):
    assert f"\n{row}" in settings_page()


@pytest.mark.parametrize("words", ALL)
def test_every_command_can_print_json(words):
    assert "--json" in [o for p in ALL[words].params for o in p.opts]


def run(*arguments: object):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["up", "nofile.zip"], "no such file or folder: nofile.zip"),
        (["up", "ml-100"], "did you mean 'ml-100k'"),
        (["up", "sample", "--preset", "rankng"], "did you mean 'ranking'"),
        (["up", "sample", "--set", "train.epoch=3"], "did you mean train.epochs"),
        (["up", "sample", "--set", "nonsense"], "write group.key=value"),
        (["up", "sample", "--workers", "999"], "at most"),
        (["train", "/nowhere", "--out", "r"], "no such folder: /nowhere"),
        (["export", "/nowhere", "--out", "b"], "holds no run"),
        (["recommend", "/nowhere", "--user", "1"], "no such folder"),
        (["recommend", "/nowhere"], "exactly one of"),
        (["recommend", "/nowhere", "--all"], "--out DIR"),
        (["recommend", "/nowhere", "--rate", "five"], "ITEM=STARS"),
        (["serve", "/nowhere"], "no such folder"),
        (["train", "p", "--out", "r", "--set", "split.test=0.5"], "decided by `recray prepare`"),
        (["prepare", "sample", "--out", "p", "--set", "train.lr=1"], "decided by `recray train`"),
        (["verify", "http://127.0.0.1:99999", "/nowhere"], "no such folder"),
        (["registry", "list", "/nowhere"], "no registry at"),
        (["train", "p", "--out", "r", "--workers", "0"], "--workers"),
        (["evaluate", "sample", "--kfold", "3", "--seeds", "2"], "--kfold and --seeds exclude"),
        (["evaluate", "sample", "--kfold", "3", "-k", "5"], "-k: of a BUNDLE only; --kfold takes"),
        (["evaluate", "/nowhere", "--refit"], "go with folds or seeds"),
        (["evaluate", "/nowhere", "--set", "train.lr=1"], "go with folds or seeds"),
        (["reproduce", "/nowhere"], "holds no run"),
        (["benchmark", "qualty"], "did you mean 'quality'"),
        (["benchmark", "ingest", "--data", "x"], "benchmark ingest has no option --data"),
        (["prepare", "sample", "--out", "p", "--columns", "user"], "write user=NAME,item=NAME"),
        (["tune", "/nowhere", "--out", "s"], "no such folder: /nowhere"),
        (["tune", "/nowhere", "--out", "s", "--trials", "0"], "give 1 or more"),
        (["tune", "/nowhere", "--out", "s", "--concurrent", "0"], "auto, or a number"),
        (["tune", "/nowhere", "--out", "s", "--searcher", "rand"], "did you mean 'random'"),
        (["tune", "/nowhere", "--out", "s", "--space", "nofile"], "no such file: nofile"),
        (["tune", "/nowhere", "--out", "s", "--set", "split.test=0.5"], "recray prepare"),
        (["tune", "/nowhere", "--out", "s", "--set", "train.fit_on=train+valid"], "apart"),
        (["tune"], "give PREPARED and --out SWEEP, or --resume SWEEP"),
        (["tune", "--out", "s"], "give PREPARED"),
        (["tune", "--resume", "/nowhere"], "/nowhere holds no sweep to resume"),
        (["tune", "--out", "/nowhere", "--resume"], "/nowhere holds no sweep to resume"),
        (["tune", "p", "--out", "s", "--resume", "t"], "--out s and --resume t: give one"),
        (["tune", "export", "/nowhere", "--to", "m"], "/nowhere holds no sweep"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, words):
    done = run(*arguments)
    assert done.exit_code == 2
    assert words in done.output
    assert "Traceback" not in done.output
    assert sum(line.startswith("Error") for line in done.output.splitlines()) == 1


def test_recommend_prints_one_json_object(make_bundle):
    done = run("recommend", make_bundle().folder.path, "--user", 110, "-k", 2, "--json")
    assert done.exit_code == 0
    answer = json.loads(done.stdout)
    assert len(answer["items"]) == 2
    assert answer["source"] == "model"


def test_recommend_prints_titles_for_people(make_bundle):
    done = run("recommend", make_bundle().folder.path, "--rate", "110=5", "-k", 2)
    assert "source fold_in" in done.stdout
    assert "Film 9 (1999)" in done.stdout


def test_an_unknown_user_is_one_line(make_bundle):
    done = run("recommend", make_bundle().folder.path, "--user", 7)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no user 7 in tiny" in done.stderr


def test_folds_are_a_table_with_their_mean():
    rows = [
        FoldReport(fold=name, metrics={"rmse": value}, baselines={}, best_epoch=1, verdict="")
        for name, value in (("u1", 0.9), ("u2", 0.8))
    ]
    baselines = {"popularity": {}, "bias-only": {"rmse": 0.94}}
    result = FoldsReport(folds=rows, mean={"rmse": 0.85}, sd={"rmse": 0.0707}, baselines=baselines)
    text = result.text()
    assert [line.split() for line in text.splitlines()[2:]] == [
        ["u1", "0.9000"],
        ["u2", "0.8000"],
        ["mean", "0.8500"],
        ["sd", "0.0707"],
        ["popularity"],
        ["bias-only", "0.9400"],
    ]


def test_presets_are_listed():
    assert "ranking" in run("presets").stdout.split()


def test_the_end_of_a_connection_is_no_ctrl_d():
    group = Commands("group")

    @group.command()
    def broken() -> None:
        raise EOFError("0 bytes read")

    with pytest.raises(RuntimeError, match="0 bytes read"):
        group.main(["broken"], standalone_mode=False)
