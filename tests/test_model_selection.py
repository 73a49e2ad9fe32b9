"""Training chooses among models on validation, and the run is the one that was taken."""

import json
from pathlib import Path

import pytest

from recray.config import candidates, load_settings
from recray.errors import RecrayError
from recray.training import model_selection, trainer
from recray.training.checkpoint import RunFolder
from recray.training.loop import build_run
from recray.training.model_selection import CANDIDATES, SELECTION, clear_outdated
from recray.training.run_metadata import ModelSelection, RunMetadata
from recray.training.shard import Workers
from recray.tuning.space import load_space

POOR = "ranking model.dim=1 train.epochs=1 train.l2=1000000"
GOOD = "ranking model.dim=2 train.epochs=4"


def recipe(*choose_from, changes=()):
    names = json.dumps(list(choose_from))
    # With this seed the poor model's first vectors tell nothing by chance.
    given = [f"train.choose_from={names}", "evaluate.k=3", "train.seed=3", *changes]
    return load_settings("ranking", None, given)


# -------------------------------------------------------------------------------- settings


def test_candidates_share_data_split_measurement_and_seed_and_nothing_else():
    changes = ["split.kind=random", "data.core=3", "train.seed=7"]
    found = candidates(recipe(POOR, "ranking", "dot-mse train.lr=0.5", changes=changes))
    assert list(found) == ["ranking", "ranking-2", "dot-mse"]
    for settings in found.values():
        assert settings.split.kind == "random"
        assert settings.data.core == 3
        assert settings.evaluate.k == (3,)
        assert settings.train.seed == 7
        assert settings.train.choose_from == ()
    assert found["ranking"].train.epochs == 1
    assert found["ranking-2"].train.epochs == load_settings("ranking").train.epochs
    assert found["dot-mse"].train.lr == 0.5


def test_the_preset_next_chooses_among_the_models_of_order_the_simplest_first():
    settings = load_settings("next")
    found = candidates(settings)
    assert list(found) == ["markov", "next-ridge", "sequence"]
    assert {s.split.kind for s in (settings, *found.values())} == {"next"}
    assert {s.metric for s in found.values()} == {"ndcg@10"}


def test_closed_forms_stay_on_the_cpu():
    found = candidates(recipe("ease", "ranking", changes=["train.device=cuda"]))
    assert [s.train.device for s in found.values()] == ["cpu", "cuda"]


@pytest.mark.parametrize(
    ("choose_from", "words"),
    [
        ("[rankign]", "did you mean 'ranking'"),
        ('["ranking split.kind=random"]', "split is the same for all"),
        ('["ranking train.lr=1"]', "train.lr=1.0 changes nothing"),
    ],
)
def test_a_candidate_that_cannot_be_is_refused_when_settings_are_read(choose_from, words):
    with pytest.raises(RecrayError, match=words):
        load_settings("ranking", None, [f"train.choose_from={choose_from}"])


@pytest.mark.parametrize("override", ["model.dim=9", "objective.kind=bpr", "train.epochs=3"])
def test_a_setting_that_belongs_to_a_candidate_is_refused_beside_them(override):
    with pytest.raises(RecrayError, match=r"changes nothing with train\.choose_from="):
        load_settings("ranking", None, ["train.choose_from=[dot-mse]", override])


def test_a_search_is_of_one_model():
    with pytest.raises(RecrayError, match=r"chooses among several.*ranking"):
        load_space(recipe("ranking", "dot-mse"))


# -------------------------------------------------------------------------------- choosing


@pytest.fixture
def choose(prepared, tmp_path, monkeypatch):
    """Choose without Ray: a run is trained in this process, and its name is noted."""
    trained: list[str] = []

    def run(settings, prepared_path, out, workers=1, resume=False, **_how):
        folder = RunFolder(out)
        settings = trainer.adapt_to_dataset(settings, prepared)
        metadata = RunMetadata(
            dataset="tiny", prepared=prepared_path, settings=settings, workers=1,
            fingerprint=prepared.fingerprint,
        )  # fmt: skip
        folder.validate(metadata, resume)
        if folder.finished:
            return trainer._finish(folder, folder.train_state(), already=True)
        folder.reserve(metadata)
        for _ in build_run(settings, prepared, folder, Workers(), lambda _entry: None).epochs():
            pass
        trained.append(folder.folder.name)
        return trainer._finish(folder, folder.train_state())

    monkeypatch.setattr(trainer, "run", run)
    monkeypatch.setattr(trainer, "require_local", lambda _workers: None)

    def choose(settings, resume=False):
        trained.clear()
        out = str(tmp_path / "run")
        return model_selection.train(settings, prepared.folder.path, out, resume=resume), trained

    return choose


def test_a_later_model_is_taken_where_its_gain_is_sure(choose, tmp_path):
    summary, trained = choose(recipe(POOR, GOOD, GOOD))
    selection = summary.selection
    assert trained == ["ranking", "ranking-2", "ranking-3"]
    assert selection.taken == "ranking-2", "the third is the same model again, so no better"
    poor, good, same = selection.models
    assert poor.gain is None
    assert good.against == "ranking"
    assert good.gain.low > 0
    assert good.gain.value == pytest.approx(good.value.value - poor.value.value)
    assert (same.against, same.gain.value) == ("ranking-2", 0.0)
    assert good.value.value == pytest.approx(summary.best[selection.metric], abs=1e-12)
    kept = json.loads((tmp_path / "run" / SELECTION).read_text())["selection"]
    assert ModelSelection.model_validate(kept) == selection


def test_the_simplest_stays_where_a_later_one_is_not_better(choose):
    summary, _ = choose(recipe(GOOD, POOR))
    assert summary.selection.taken == "ranking"
    assert summary.selection.models[1].gain.high < 0


def test_the_run_is_a_copy_of_the_one_that_was_taken(choose, tmp_path):
    choose(recipe(POOR, GOOD))
    run, taken = (RunFolder(str(tmp_path / p)) for p in ("run", f"run/{CANDIDATES}/ranking-2"))
    assert run.finished
    assert run.metadata().settings == taken.metadata().settings
    assert run.metadata().prepared == taken.metadata().prepared, "named from its own folder"
    assert run.history() == taken.history()
    for name, weights in run.best().weights.items():
        assert weights.equal(taken.best().weights[name])


def test_what_is_finished_is_not_trained_again(choose, tmp_path):
    settings = recipe(POOR, GOOD)
    first, _ = choose(settings)
    again, trained = choose(settings, resume=True)
    assert trained == []
    assert again.already_finished
    assert again.selection == first.selection
    for name in ("manifest.json", "selection.json", "run.json"):  # killed while it was copied
        (tmp_path / "run" / name).unlink()
    again, trained = choose(settings, resume=True)
    assert trained == []
    assert (again.selection, again.already_finished) == (first.selection, False)


def test_a_folder_that_holds_something_is_refused(choose, tmp_path):
    choose(recipe(POOR, GOOD))
    with pytest.raises(RecrayError, match="holds a run already"):
        choose(recipe(POOR, GOOD))
    with pytest.raises(RecrayError, match="with other settings"):
        choose(recipe(GOOD, POOR), resume=True)


def test_a_stage_keeps_the_candidates_that_match(choose, prepared, tmp_path):
    choose(recipe(POOR, GOOD))
    changed = recipe(POOR, "ranking model.dim=2 train.epochs=3")
    folder = RunFolder(str(tmp_path / "run")).folder
    clear_outdated(folder, changed, prepared, 1, "local")
    assert folder.child(CANDIDATES).folders() == ["ranking"]
    summary, trained = choose(changed, resume=True)
    assert trained == ["ranking-2"]
    assert not summary.already_finished


def test_what_does_not_fit_the_data_is_left_out_by_name(choose):
    summary, trained = choose(recipe("neumf-ranking train.batch_size=1000", GOOD))
    left_out, taken = summary.selection.models
    assert trained == ["ranking"]
    assert "train.batch_size=1000: the data set has" in left_out.left_out
    assert (taken.name, taken.against, summary.selection.taken) == ("ranking", None, "ranking")


def test_where_nothing_fits_or_nothing_compares_it_is_refused(choose):
    with pytest.raises(RecrayError, match=r"neumf-ranking: train\.batch_size=1000"):
        choose(recipe("neumf-ranking train.batch_size=1000"))
    with pytest.raises(RecrayError, match=r"ranking has ndcg@3, dot-mse has rmse; set train.met"):
        choose(recipe("ranking", "dot-mse train.batch_size=4"))


def test_without_validation_there_is_nothing_to_choose_by(choose, prepared):
    facts = json.loads((Path(prepared.folder.path) / "manifest.json").read_text())
    facts["splits"]["valid"]["rows"] = 0
    (Path(prepared.folder.path) / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(RecrayError, match="no validation ratings to choose a model by"):
        choose(recipe(POOR, GOOD))
