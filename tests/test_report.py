"""The report: what it shows of a planted bundle, and that the page stands alone."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from recray import schema
from recray.cli import cli
from recray.data.split import TEST
from recray.errors import RecrayError
from recray.evaluation import evaluator
from recray.inference.recommender import Recommender
from recray.reporting import report
from recray.reporting.html import Document, Section, Table
from recray.reporting.plots import predictions, run, style

from .conftest import USERS


@pytest.fixture
def measured(make_bundle):
    """A bundle with its evaluation, by preset."""

    def make(preset: str = "ranking"):
        bundle = make_bundle(preset, preset=preset)
        bundle.metrics.update(evaluator.evaluate(bundle).plain())
        return bundle

    return make


def sections(document: Document) -> list[str]:
    return [section.name for section in document.sections]


@pytest.mark.parametrize("preset", ["ranking", "dot-mse"])
def test_every_picture_says_what_it_shows_and_names_its_axes(measured, preset):
    document = report.of_bundle(measured(preset), "bundle")
    assert sections(document) == ["data", "training", "predictions", "ranking", "users", "facts"]
    assert len(document.plots) >= 14
    for picture in document.plots:
        assert len(picture.title) > 15, picture.name
        first, *others = picture.figure.axes  # others share the vertical axis
        assert first.get_ylabel() or first.get_yticklabels(), picture.name
        assert all(axes.get_xlabel() for axes in (first, *others)), picture.name


def test_stars_are_drawn_where_the_model_predicts_them_and_places_where_it_ranks(measured):
    stars, places = (
        {p.name for p in report.of_bundle(measured(preset), "bundle").plots}
        for preset in ("dot-mse", "ranking")
    )
    assert {"predictions-calibration", "predictions-error", "ranking-errors"} <= stars - places
    assert {"predictions-places", "predictions-order"} <= places - stars


class Links(HTMLParser):
    """Every address that the page asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [v for name, v in attrs if name in ("src", "href", "xlink:href", "action")]
        if tag not in ("meta", "use", "path", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in ("meta", "use", "path", "br"):
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in ("meta", "use", "path", "br"):
            assert self.open.pop() == tag


def test_the_page_stands_alone_and_is_whole(measured):
    page = report.of_bundle(measured(), "bundle").html()
    links = Links()
    links.feed(page)
    assert not links.open
    assert links.found
    assert all(link.startswith("#") for link in links.found)
    assert not re.search(r"@import|url\((?!#)", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert {link[1:] for link in links.found} <= set(ids)
    clips = re.findall(r"url\(#([^)]+)\)", page)
    assert clips
    assert set(clips) <= set(ids)


def test_colours_follow_the_page_and_nothing_is_black_or_white_for_good(measured):
    page = report.of_bundle(measured(), "bundle").html()
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not set(re.findall(r"#[0-9a-f]{6}\b", drawn))
    used = set(re.findall(r"var\(--(c[0-9a-f]{6})\)", drawn))
    for scheme in (False, True):
        assert used <= set(re.findall(r"--(c[0-9a-f]{6}):", style.css(scheme)))


def test_titles_of_films_are_text_and_no_markup():
    table = Table("<b>", ["film"], [["<script>alert(1)</script>"]])
    page = Document("<i>", ["<u>"], [("<s>", "&")], [Section("x", "<q>", "", [table])]).html()
    assert not re.search(r"<(script|b|i|u|s|q)>(?!&lt;)alert|<(i|u|q)>", page)
    assert "&lt;script&gt;" in page


def test_places_are_those_of_the_planted_lists(make_bundle):
    held = predictions.measure(Recommender(make_bundle()))
    assert held.predicted is None
    assert held.rank.tolist()[0] == 1, "user 0: film 8 is the only even one left"
    assert len(held.rank) == 14, "13 users' films, and one that training lacks, which has no place"


def test_the_users_shown_are_those_at_the_quarters(make_bundle):
    recommender = Recommender(make_bundle())
    chosen = predictions.typical_users(recommender)
    before = recommender.bundle.interactions.before_test
    counts = np.bincount(before.user, minlength=USERS + 2)
    assert counts[chosen].tolist() == [4, 4, 4]
    assert chosen == [1, 5, 8]


def test_what_the_data_lack_is_left_out():
    assert run.over_time(np.full(3, schema.UNKNOWN_TIME)) is None
    assert run.genres({}) is None
    assert predictions.place_by_level(np.array([1, 2]), np.ones(2, np.float32)) is None
    assert run.metric([{"epoch": 1, "loss": 1.0, "seconds": 0.1}], "rmse", 1) is None


def test_bars_are_the_counts():
    figure = run.rating_counts([[1.0, 3], [2.5, 1]])
    assert [bar.get_height() for bar in figure.axes[0].patches] == [3, 1]
    rates = run.speed([{"epoch": 1, "loss": 1.0, "seconds": 0.5}], 100)
    assert [bar.get_height() for bar in rates.axes[0].patches] == [200]


def test_error_by_rating_is_signed():
    predicted, actual = np.array([2.0, 2.0, 4.0]), np.array([1.0, 1.0, 5.0])
    drawn = predictions.error_by_level(predicted.astype("f4"), actual.astype("f4")).axes[0]
    assert [bar.get_height() for bar in drawn.patches] == [1, 1, 1, -1]


def test_a_rating_of_nobody_is_no_picture_but_an_empty_section(make_bundle):
    bundle = make_bundle()
    rows, part = bundle.interactions.rows, bundle.interactions.part
    without = replace(bundle.interactions, rows=rows.where(part != TEST), part=part[part != TEST])
    bundle = replace(bundle, interactions=without)
    assert sections(report.of_bundle(bundle, "bundle")) == ["data", "training", "facts"]


def run_report(*arguments: object):
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


def test_the_command_writes_page_and_pictures(make_bundle, tmp_path):
    bundle = make_bundle().folder.path
    told = json.loads(
        run_report(bundle, "--out", tmp_path / "x" / "r.html", "--png", "--json").stdout
    )
    assert told["report"] == str(tmp_path / "x" / "r.html")
    heads = {(tmp_path / "x" / "r-pictures" / p).read_bytes()[:4] for p in told["pictures"]}
    assert heads == {b"\x89PNG"}
    shown = run_report(bundle).stdout
    assert shown == f"{bundle}.html\n"
    assert Path(f"{bundle}.html").read_text().startswith("<!doctype html>")


def test_what_cannot_be_drawn_is_one_line(prepared, tmp_path):
    for path, words in (("/nowhere", "no such folder"), (prepared.folder.path, "no run, no sweep")):
        done = run_report(path)
        error = [line for line in done.stderr.splitlines() if line.startswith("Error")]
        assert (done.exit_code, len(error)) == (2, 1)
        assert words in error[0]
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(RecrayError, match="not finished"):
        report.make(str(tmp_path))


def test_a_sweep_shows_its_trials_the_winner_first(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    trials = [
        {"trial": n, "status": "finished", "value": value, "sd": None, "best_epoch": 1, "epochs": 2,
         "settings": {"train.lr": 0.1 * n}, "error": ""}
        for n, value in enumerate((0.9, 0.7, None, 0.8))
    ]  # fmt: skip
    summary = {"dataset": "tiny", "preset": "gmf", "metric": "rmse", "searcher": "random",
               "scheduler": "asha", "trials": trials, "best": 1, "best_config": "",
               "test": None, "lower_is_better": True, "folds": 0, "workers": 1,
               "sweep": str(tmp_path), "results": "",
               "space": {"train.lr": {"uniform": [0, 1]}}}  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    document = report.make(str(tmp_path))
    table = document.sections[0].blocks[-1]
    assert [row[:2] for row in table.rows] == [["1", "0.7"], ["3", "0.8"], ["0", "0.9"], ["2", ""]]
    assert table.columns == ["trial", "rmse", "status", "best_epoch", "epochs", "train.lr"]
    assert [p.name for p in document.plots] == ["search-history", "search-parallel"]
    assert document.lead == ["The test split was not opened."]


def test_what_up_wrote_is_reported_by_its_folder(make_bundle, tmp_path):
    make_bundle("bundle")
    assert report.make(str(tmp_path)).title == "tiny: ranking (bundle)"


def test_an_interval_that_misses_its_mean_by_a_rounding_is_drawn():
    figure, axes = style.picture("", "", "")
    style.intervals(axes, [0.1, 0.2], [0, 1], xerr=[np.array([-1e-17, 0.1]), np.array([0.0, 0.1])])
    style.intervals(axes, [0, 1], [0.1, 0.2], yerr=np.array([-1e-17, np.nan]))
    assert len(axes.containers) == 2
    assert figure
