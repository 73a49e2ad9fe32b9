"""One target at a time: targets and histories written out, ranks by brute force, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from recray.cli import cli
from recray.config import EvaluateSettings
from recray.errors import RecrayError
from recray.evaluation import next_item
from recray.evaluation.evaluator import Evaluator, _MeasureBlocks
from recray.evaluation.next_item import NextTargets
from recray.evaluation.other_bundles import other_bundles
from recray.evaluation.protocol import Protocol
from recray.inference.scorer import Scorer
from recray.models.history import HistoryModel
from recray.models.objectives import ByHistory
from recray.models.recent_popular import RecentPopular
from recray.pipelines import stages
from recray.reporting import terminal
from recray.schema import UNKNOWN_TIME

from .conftest import ITEMS, rows_of_splits

SETTINGS = EvaluateSettings(k=(2, 4))
KINDS = ("last", "successive", "all")


def expected(kind: str) -> list[tuple[int, int, list[int]]]:
    """User, target and history of each target, from the rows of the data set."""
    rows = sorted(
        (user, time, split == "test", item)
        for split, part in rows_of_splits().items()
        for user, item, _, time in part
    )
    found = []
    for user in sorted({row[0] for row in rows}):
        own = [row for row in rows if row[0] == user]
        tests = [place for place, row in enumerate(own) if row[2]]
        chosen = tests[-1:] if kind == "last" else tests
        for place in chosen:
            end = tests[0] if kind == "all" else place
            found.append((user, own[place][3], [row[3] for row in own[:end]]))
    return found


def evaluated(bundle, kind: str, baselines=("popularity", "item-knn"), **protocol):
    evaluator = Evaluator(bundle, SETTINGS, protocol=Protocol(baselines, next=kind, **protocol))
    parts = [evaluator.measure_block(block) for block in range(len(evaluator.blocks))]
    return evaluator, parts


@pytest.mark.parametrize("kind", KINDS)
def test_targets_and_what_was_known_before_them(make_bundle, kind):
    targets = NextTargets.of(make_bundle(), kind)
    wanted = expected(kind)
    found = targets.ratings
    pairs = list(zip(found.user.tolist(), found.item.tolist(), strict=True))
    assert pairs == [(user, item) for user, item, _ in wanted]
    history = targets.history(targets.moment)
    known = [part.tolist() for part in np.split(history.item, history.indptr[1:-1])]
    assert known == [[i for i in before if i < ITEMS] for _, _, before in wanted]
    assert len(wanted) == {"last": 14, "successive": 15, "all": 15}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_each_target_is_ranked_among_all_that_was_not_seen(make_bundle, kind):
    evaluator, (part,) = evaluated(make_bundle(), kind)
    model = evaluator.scorers["item-knn"].model
    values = []
    for _, item, before in expected(kind):
        history = torch.tensor([i for i in before if i < ITEMS], dtype=torch.int64)
        if not len(history):  # nobody knows anything of them: the most popular items
            scores = evaluator.scorers["popularity"].popularity.clone()
        else:
            state = torch.zeros(1, ITEMS)
            state[0, history] = 1.0
            scores = model.score(state)[0]
        scores[history] = -torch.inf
        order = torch.argsort(-scores, stable=True)[:4].tolist()
        values.append(1 / (order.index(item) + 1) if item in order else 0.0)
    assert part["item-knn"].values["mrr@4"] == pytest.approx(values)
    report = evaluator.report([part])
    assert report.targets == len(values)
    assert report.users == 14
    mrr = report.baselines["item-knn"].metrics["mrr@4"]
    assert mrr.value == pytest.approx(np.mean(values)), "a mean over targets"


def test_a_trained_state_stands_where_nothing_came_since_and_all_is_folded_in_elsewhere(
    make_bundle, monkeypatch
):
    bundle = make_bundle(changes=["train.fit_on=train+valid"])
    assert bundle.model.users == 13
    targets, scorer = NextTargets.of(bundle, "successive"), Scorer.for_measurement(bundle)
    folded = []
    solver = scorer._solver

    def count(known):
        folded.extend(np.diff(known.indptr.numpy()).tolist())
        return solver(known)

    scorer.__dict__["_solver"] = count
    moments = np.arange(len(targets.target))
    queries = targets._queries(scorer, moments)
    # Users 0..12 have learned just what was known; of user 0 a test rating came in between, and
    # nothing is known of user 13.
    assert queries.source.tolist() == [0, 1] + [0] * 12 + [2]
    assert folded == [5]
    state = bundle.model.user_state(torch.tensor([0, *range(1, 13)]))
    assert torch.equal(queries.embedding[[0, *range(2, 14)]], state)


class Asked(HistoryModel):
    """Notes the times that it is asked with."""

    reads_order, reads_times = True, True

    def __init__(self, users, items):
        super().__init__(users, items)
        self.known = []

    def state_of(self, known):
        self.known.append(known)
        return torch.ones(len(known.indptr) - 1, 1)

    def logits(self, state, item):
        return -item.float()

    def logits_block(self, state, first, last):
        return -torch.arange(first, last).float().expand(len(state), -1)


class AskedOfWindow(Asked, RecentPopular):
    """The same, as popularity in a window of time."""


@pytest.mark.parametrize(("kind", "now"), [("last", 2000), ("successive", 1004), ("all", 1004)])
@pytest.mark.parametrize("base", [Asked, AskedOfWindow])
def test_the_time_of_a_target_ends_a_window_and_tells_no_model(make_bundle, kind, now, base):
    bundle = make_bundle()
    targets = NextTargets.of(bundle, kind)
    beside, model = Scorer.for_measurement(bundle), base(12, ITEMS)
    scorer = Scorer(model, ByHistory(), beside.history, popularity=beside.popularity)
    targets.rank(scorer, np.arange(len(targets.end)), SETTINGS)
    (known,) = model.known
    assert known.now is None if base is Asked else known.now[0] == now
    last = 4 if kind != "last" else 5
    assert known.time[:last].tolist() == [1000, 1001, 1002, 1003, 1004][:last]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_any_size_and_any_order_give_the_same_digits(make_bundle, kind, monkeypatch):
    bundle, reports = make_bundle(), []
    for users, moments in ((256, 256), (5, 2), (1, 1)):
        monkeypatch.setattr("recray.evaluation.metrics.USER_BLOCK", users)
        monkeypatch.setattr(next_item, "MOMENTS", moments)
        evaluator, parts = evaluated(bundle, kind)
        reports.append(evaluator.report(parts[::-1]).plain())
    assert reports[0] == reports[1] == reports[2]


def test_any_number_of_workers_gives_the_same_digits(make_bundle, monkeypatch):
    monkeypatch.setattr("recray.evaluation.metrics.USER_BLOCK", 3)
    bundle, reports = make_bundle(), []
    protocol = Protocol(("popularity", "item-knn"), next="successive")
    for workers in (1, 2, 4):
        task = _MeasureBlocks(bundle.folder.path, bundle.version, SETTINGS, protocol, workers)
        parts = [task(worker) for worker in reversed(range(workers))]
        evaluator = Evaluator(bundle, SETTINGS, protocol=protocol)
        reports.append(evaluator.report(parts).plain())
    assert reports[0] == reports[1] == reports[2]


def retimed(bundle, change):
    """The bundle with other rows in its interactions."""
    every = bundle.interactions
    return replace(bundle, interactions=replace(every, rows=change(every.rows, every.part)))


def test_what_comes_after_a_target_changes_nothing_of_its_list(make_bundle):
    bundle = make_bundle()

    def later(rows, part):
        item = rows.item.copy()
        item[(rows.user == 0) & (rows.timestamp == 2000)] = 7  # another film after the target
        return replace(rows, item=item)

    before, after = (NextTargets.of(b, "successive") for b in (bundle, retimed(bundle, later)))
    scorer = Scorer.for_measurement(bundle)
    one, two = (t.rank(scorer, np.arange(1), SETTINGS)[0].ranked for t in (before, after))
    assert one.item.tolist() == two.item.tolist()
    assert one.score.tobytes() == two.score.tobytes()


def without_times(rows, part, some=None):
    chosen = part == 2 if some is None else (part == 2) & np.isin(rows.user, some)
    return replace(rows, timestamp=np.where(chosen, UNKNOWN_TIME, rows.timestamp))


def test_a_rating_of_unknown_time_is_no_target_but_known(make_bundle):
    bundle = retimed(make_bundle(), lambda rows, part: without_times(rows, part, [1, 2]))
    targets = NextTargets.of(bundle, "last")
    assert not np.isin(targets.ratings.user, [1, 2]).any()
    assert len(targets.target) == 12


def test_without_any_time_it_is_refused_and_a_kept_order_is_taken(make_bundle):
    bundle = retimed(make_bundle(), without_times)
    with pytest.raises(RecrayError, match=r"--next last needs the order .* data\.order=file"):
        NextTargets.of(bundle, "last")

    def placed(rows, part):
        place = np.concatenate([np.arange(n) for n in np.unique(rows.user, return_counts=True)[1]])
        return replace(rows, place=place.astype(np.int32))

    targets = NextTargets.of(retimed(bundle, placed), "successive")
    assert len(targets.target) == 15


def test_baselines_that_read_order_and_time_stand_beside_it_as_far_as_the_data_allow(make_bundle):
    bundle = make_bundle()
    evaluator, parts = evaluated(bundle, "last", None)
    report = evaluator.report(parts)
    assert set(report.baselines) == set(next_item.BESIDE)
    assert report.baselines["markov"].metrics["ndcg@2"].value > 0
    times = bundle.interactions.rows.timestamp
    untimed = next_item.baselines_beside(10, np.full_like(times, UNKNOWN_TIME))
    assert set(next_item.BESIDE) - set(untimed) == {"recent-popular"}
    assert "item-knn" not in next_item.baselines_beside(12_001, times)


def test_training_rows_after_a_target_are_named(make_bundle):
    def first(rows, part):
        times = np.where((part == 2) & (rows.user == 3), 10, rows.timestamp)
        return replace(rows, timestamp=times)

    bundle = retimed(make_bundle(), first)
    evaluator, parts = evaluated(bundle, "last", ("popularity",))
    protocol = evaluator.report(parts).protocol
    assert not protocol.honest
    assert "later ratings of 1 of these users" in protocol.words
    evaluator, parts = evaluated(make_bundle("other"), "last", ("popularity",))
    report = evaluator.report(parts)
    assert report.protocol.honest
    assert "rmse" not in report.metrics
    assert "14 users, 14 targets" in terminal.evaluation(report)
    assert "one target at a time: the last test rating" in terminal.evaluation(report)


# Other bundles on the same targets.


def test_bundles_of_one_data_set_are_compared_with_the_baselines_in_one_family(make_bundle):
    fit = ["train.fit_on=train+valid"]
    good, bad = make_bundle("good", changes=fit), make_bundle("bad", flip=True, changes=fit)
    report = stages.evaluate(
        good.folder.path,
        {"k": [2]},
        protocol=Protocol(("popularity", "item-knn"), next="all"),
        others=[bad.folder.path],
    )
    name = f"ranking {bad.version[:6]}"
    assert set(report.bundles) == {name}
    assert [found.other for found in report.comparisons] == [name, "popularity", "item-knn"]
    alone = Protocol(("popularity",), next="all")
    own = stages.evaluate(bad.folder.path, {"k": [2]}, protocol=alone)
    assert report.bundles[name].metrics["ndcg@2"].value == own.metrics["ndcg@2"].value
    against = report.comparisons[0]
    assert against.verdict == "better than"
    assert against.p_holm >= against.p
    assert f"better than {name}" in report.verdict
    whole = stages.evaluate(good.folder.path, {"k": [2]}, others=[bad.folder.path])
    assert whole.bundles[name].metrics["ndcg@2"].value < whole.metrics["ndcg@2"].value


def test_a_bundle_with_other_targets_is_refused(make_bundle, prepared):
    bundle, other = make_bundle("one"), make_bundle("two", flip=True)
    with pytest.raises(RecrayError, match="is compared already"):
        other_bundles(bundle, [other.folder.path, other.folder.path])
    fit = make_bundle("fit", changes=["train.fit_on=train+valid"])
    with pytest.raises(RecrayError, match=r"as the fit on train\+valid, .* as the fit on train;"):
        other_bundles(bundle, [fit.folder.path])
    prepared.manifest["fingerprints"]["test"] = "changed"
    elsewhere = make_bundle("elsewhere")
    with pytest.raises(RecrayError, match="their targets differ"):
        other_bundles(bundle, [elsewhere.folder.path])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--next", "last", "--among", "rated"], "--next last ranks the whole catalogue"),
        (["--next", "first"], "not one of 'last', 'successive', 'all'"),
        (["--against", "/nowhere"], "no such folder: /nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(make_bundle, options, words):
    done = CliRunner().invoke(cli, ["evaluate", make_bundle().folder.path, *options])
    assert done.exit_code == 2, done.output
    assert words in done.output
