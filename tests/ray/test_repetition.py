"""Folds and seeds end to end, and a run that is trained again."""

import pytest

from recray.config import load_settings
from recray.data import sample
from recray.data.dataset import Prepared
from recray.data.source import detect_source
from recray.errors import RecrayError
from recray.pipelines import repetition
from recray.pipelines import stages as pipeline
from recray.pipelines.repetition import reproduce
from recray.storage import Folder
from recray.training.checkpoint import RunFolder

pytestmark = pytest.mark.usefixtures("ray_session")

QUICK = ["model.dim=4", "train.epochs=2"]


def quiet(_line):
    pass


def test_folds_are_measured_apart_and_summed_up(tmp_path):
    settings = load_settings("ranking", None, QUICK)
    folds = repetition.repetitions(settings, kfold=2)
    result = repetition.run("sample", folds, str(tmp_path), log=quiet)
    values = [row.metrics["ndcg@10"] for row in result.folds]
    assert [row.fold for row in result.folds] == ["fold-0", "fold-1"]
    assert values[0] != values[1]
    assert result.mean["ndcg@10"] == pytest.approx(sum(values) / 2)
    assert result.sd["ndcg@10"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    rows = [Prepared.open(str(tmp_path / f"fold-{n}/prepared")).load("test") for n in (0, 1)]
    assert sum(map(len, rows)) == sample.files()["ratings.csv"].count(b"\n") - 1


def test_folds_that_share_test_rows_are_refused(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    lines = [f"{n % 30}\t{n}\t{1 + n % 5}\t{n + 1}\n" for n in range(300)]
    for name, test in (("a", slice(0, 60)), ("b", slice(50, 110))):
        rest = [line for n, line in enumerate(lines) if not test.start <= n < test.stop]
        (folder / f"{name}.base").write_text("".join(rest))
        (folder / f"{name}.test").write_text("".join(lines[test]))
    settings = load_settings("ranking", None, [*QUICK, "split.valid=0"])
    folds = repetition.repetitions(settings, names=["a", "b"])
    with pytest.raises(RecrayError, match=r"10 test ratings of b are test ratings of a too"):
        repetition.run(str(folder), folds, str(tmp_path / "out"), log=quiet)


def test_a_refit_takes_the_chosen_epochs_on_all_rows_but_the_test(tmp_path):
    settings = load_settings("ranking", None, QUICK)
    folds = repetition.repetitions(settings, seeds=1)
    repetition.run("sample", folds, str(tmp_path), refit=True, log=quiet)
    first, second = (RunFolder(str(tmp_path / f"seed-0/{n}")) for n in ("run", "run/measured"))
    assert second.metadata().settings.train.fit_on == "train+valid"
    assert second.best().train_state.epoch == first.best().train_state.best_epoch
    assert "ndcg@10" in first.best().train_state.history[0]
    assert "ndcg@10" not in second.best().train_state.history[0]


def test_a_run_reproduces_and_a_changed_one_does_not(tmp_path):
    settings = load_settings("gmf", None, [*QUICK, "train.batch_size=4096"])
    stages = pipeline.Stages(Folder(str(tmp_path)), settings, 1, "local", quiet)
    prepared = stages.prepare(detect_source("sample"))
    run = stages.train(prepared)
    assert reproduce(run).model_dump() == {
        "run": run,
        "agrees": True,
        "epochs": 2,
        "differences": [],
    }
    epochs = tmp_path / "run" / "epochs.json"
    epochs.write_text(epochs.read_text().replace('"epoch": 2', '"epoch": 3'))
    assert not reproduce(run).agrees
