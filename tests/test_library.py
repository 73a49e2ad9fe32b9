"""What `import recray` offers, on the embedded sample: every example of its documentation."""

import asyncio
import contextlib
import doctest
import logging
import os
import pathlib
import random
import signal
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import recray
from recray.api import evaluation as measuring
from recray.api import functions, handles
from recray.api import model as loaded
from recray.api.caller import left_as_found
from recray.data import ingest
from recray.errors import RecrayError
from recray.evaluation import evaluator
from recray.inference import batch
from recray.pipelines import repetition, search, stages
from recray.reporting import report
from recray.training import elastic, trainer
from recray.training.checkpoint import RunFolder
from recray.training.loop import build_run
from recray.training.shard import Workers
from recray.tuning import tuner
from recray.tuning.driver import SearchDriver
from recray.tuning.trial import TrialRun, load

from .conftest import USERS, raw
from .in_process import InProcess


def plain_maps(function, count, **shared):
    return [function(number, **shared) for number in range(count)]


def plain_fit(_worker, config, *_others):
    job = config["job"]
    prepared = trainer.Prepared.open(job.prepared)
    run, report = RunFolder(job.run), lambda _entry: None
    build_run(job.settings, prepared, run, Workers(), report, job.start_weights).fit()


def plain_trials(driver: SearchDriver, _concurrent):
    search, data = driver.search, load(driver.search.data)
    while spec := driver.next("a"):
        trial = TrialRun(data, search.sweep, spec, search.metric)
        while not trial.step().done:
            pass
        driver.ended("a")


STAND_INS = {
    "session": lambda _address="": contextlib.nullcontext(),
    "wait_for_capacity": lambda _workers: None,
    "map_tasks": plain_maps,
    "require_shared": lambda _folder: None,
    "TaskRunner": InProcess,
}


@pytest.fixture(scope="module")
def without_ray():
    """The stages in this process: loops where Ray would share the work."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (
            batch,
            repetition,
            evaluator,
            functions,
            ingest,
            search,
            stages,
            trainer,
            tuner,
        ):
            for name, stand_in in STAND_INS.items():
                if hasattr(module, name):
                    patch.setattr(module, name, stand_in)
        patch.setattr(elastic, "fit", plain_fit)
        patch.setattr(elastic, "request_workers", lambda *_request: None)
        patch.setattr(tuner, "_fit", plain_trials)
        patch.setattr(tuner, "_fitting_trials", lambda _search: 1)
        yield


@pytest.fixture(scope="module")
def names(without_ray, tmp_path_factory):
    """What the examples know: recray, a folder, and a bundle of the sample in it."""
    folder = str(tmp_path_factory.mktemp("library"))
    data = recray.prepare("sample", f"{folder}/prepared")
    run = recray.train(data, f"{folder}/run-of-bundle")
    bundle = run.export(f"{folder}/bundle").path
    return {"recray": recray, "folder": folder, "bundle": bundle}


def examples():
    finder = doctest.DocTestFinder()
    found = [
        test for module in (functions, measuring, handles, loaded) for test in finder.find(module)
    ]
    return {test.name: test for test in found if test.examples}


@pytest.mark.parametrize("name", examples())
def test_the_example_of(name, names, monkeypatch):
    test = examples()[name]
    test.globs = dict(names)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    report = []
    doctest.DocTestRunner(optionflags=options).run(test, out=report.append)
    assert not report, "".join(report)


def state_of_the_process():
    """What a caller may have chosen for the whole process."""
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "random": random.getstate(),
        "handlers": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)],
        "environment": dict(os.environ),
        "streams": (sys.stdout, sys.stderr),
        "levels": (logging.getLogger().level, logging.getLogger("recray").level),
        "folder": os.getcwd(),
    }


ONE_EPOCH = {"train.epochs": np.int64(1), "model.dim": np.float64(4)}


def work(folder, names):
    """Every function once, with paths of pathlib and numbers of numpy."""
    folder = pathlib.Path(folder)
    prepared = pathlib.Path(names["folder"]) / "prepared"
    recray.prepare("sample", prepared)
    run = recray.train(prepared, folder / "run", settings=ONE_EPOCH, workers=1.0)
    model = run.export(folder / "bundle", final_fit=False)
    found = recray.evaluate(folder / "bundle", k=np.array([5]), baselines="popularity")
    assert list(found.columns) == ["model", "low", "high", "popularity"]
    best = recray.tune(prepared, folder / "sweep", trials="1", seeds=0, settings=ONE_EPOCH).config
    recray.train(prepared, folder / "best", config=pathlib.Path(best))
    model.report(folder / "report.html")
    return recray.load(folder / "bundle")


def test_the_process_of_the_caller_is_left_as_it_was(names, tmp_path, capsys):
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    before = state_of_the_process()
    work(tmp_path, names)
    now = state_of_the_process()
    torch.set_num_threads(threads)
    assert not {name for name in before if before[name] != now[name]}
    assert capsys.readouterr().out == ""


def test_blocks_that_overlap_put_back_what_the_first_found():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    left_as_found.__enter__()
    torch.manual_seed(0)
    left_as_found.__enter__()
    left_as_found.__exit__()
    assert not torch.equal(torch.get_rng_state(), before)
    left_as_found.__exit__()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_library_works_off_the_main_thread_and_under_an_event_loop(names, tmp_path):
    def answer():
        run = recray.train(f"{names['folder']}/prepared", tmp_path / "run", settings=ONE_EPOCH)
        model = run.export(tmp_path / "bundle", final_fit=False)
        return len(recray.evaluate(model, k=5)), len(model.recommend(4, "3"))

    async def handler():
        return await asyncio.gather(asyncio.to_thread(answer))

    ((metrics, items),) = asyncio.run(handler())
    assert metrics > 5
    assert items == 3


def test_a_user_s_ratings_come_as_frames(names):
    model = recray.load(names["bundle"])
    own = pd.DataFrame({"item": [12, 50], "rating": [4.5, 2.0]})
    lists = [
        model.recommend_from(given, np.int8(3), exclude=np.array([1]))["item"].tolist()
        for given in (own, own.set_index("item")["rating"], {12: 4.5, "50": "2"})
    ]
    assert lists[0] == lists[1] == lists[2]
    for odd in (4.7, True, None, float("nan"), [4, 5]):
        with pytest.raises(RecrayError, match=r"^user [^\n]*$"):
            model.recommend(odd, 3)
        with pytest.raises(RecrayError, match=r"^item [^\n]*$"):
            model.similar(odd, 3)
    assert model.recommend("4", 3).equals(model.recommend(np.float64(4), 3))


def test_a_cut_off_beyond_the_catalogue_is_refused(names):
    message = r"evaluate\.k=2000 is larger than the catalogue of 1500 items"
    with pytest.raises(RecrayError, match=message):
        recray.evaluate(names["bundle"], k=2000)


def test_what_is_there_and_matches_is_taken_and_anything_else_refused(names):
    folder = names["folder"]
    again = recray.prepare("sample", f"{folder}/prepared")
    assert len(again.ratings) == len(recray.load(names["bundle"]).holdout) + 53_929
    with pytest.raises(RecrayError, match="other data or settings"):
        recray.prepare("sample", f"{folder}/prepared", settings={"split.seed": 1})
    with pytest.raises(RecrayError, match="run with other settings"):
        recray.train(again, f"{folder}/run-of-bundle", settings={"model.dim": 3})


def test_a_setting_of_another_function_is_refused(names):
    with pytest.raises(RecrayError, match=r"decided by recray\.prepare"):
        recray.train("x", "y", settings={"split.seed": 1})
    with pytest.raises(RecrayError, match=r"decided by recray\.train"):
        recray.prepare("sample", "y", settings={"train.lr": 1})


def test_frames_have_titles_and_hits_are_marked(make_bundle):
    model = recray.load(make_bundle().folder.path)
    told = model.explain(int(raw(0)), 3)
    assert told.loc["recommended", "title"].tolist()[0] == "Film 1 (1991)"
    assert told.loc["held out", "title"].tolist()[0] == "Film 8 (1998)"
    assert told.loc["held out", "hit"].tolist() == [True, False]
    assert told.loc["held out", "rank"].tolist()[0] == 1
    assert model.users.loc[raw(0)].tolist() == [6, 2]
    assert model.recommend(model.users.index[0], 2)["source"].tolist() == ["model"] * 2
    assert model.history.loc[1, "rmse"] == 0.9
    with pytest.raises(RecrayError, match="ranks and does not predict stars"):
        _ = model.predictions


def test_reasons_stand_beside_the_films(make_bundle):
    model = recray.load(make_bundle().folder.path)
    listed = model.recommend(int(raw(USERS)), 1, explain=True)
    assert listed.loc[1, "because"] == ["Film 2 (1992)", "Film 0 (1990)"]
    assert "because" not in model.recommend(int(raw(USERS)), 1)


def test_predictions_stand_beside_the_held_out_stars(make_bundle):
    frame = recray.load(make_bundle(preset="dot-mse").folder.path).predictions
    assert len(frame) == 15
    assert frame["predicted"].notna().all()


def test_a_run_is_reported_as_the_bundle_of_its_best_epoch(names):
    run = f"{names['folder']}/run-of-bundle"
    document = report.make(run)
    assert document.title == "sample: ranking (run)"
    assert len(document.plots) == 5 + 3 + 3 + 5
    assert ["folder", run] in document.sections[-1].blocks[0].rows


def test_pictures_are_there_by_name(names):
    data, model = (
        recray.prepare("sample", f"{names['folder']}/prepared"),
        recray.load(names["bundle"]),
    )
    assert list(data.plots) == [n for n in model.plots if n.startswith("data-")]
    stars = [bar.get_height() for bar in data.plots["data-ratings"].axes[0].patches]
    assert sum(stars) == len(data.ratings)
