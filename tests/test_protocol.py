"""Other protocols than the honest one: planted cases in which they differ, and bad files."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from recray.cli import cli
from recray.config import EvaluateSettings
from recray.data.dataset import Ratings, in_order
from recray.data.ids import IdMap
from recray.data.split import TEST, TRAIN
from recray.errors import RecrayError
from recray.evaluation import evaluator, protocol
from recray.evaluation.evaluator import Evaluator
from recray.evaluation.metrics import compute_metrics, rank_block
from recray.evaluation.protocol import Candidates, Protocol
from recray.inference.history import History
from recray.inference.scorer import Scorer
from recray.inference.top_k import NONE
from recray.models import baselines as item_item
from recray.models.baselines import Cooccurrence, Ease, ItemKnn
from recray.models.factorization import Dot
from recray.models.history import RatingsCSR

from .conftest import raw


def evaluate(bundle, *args, **kwargs):
    """The JSON of an evaluation."""
    return evaluator.evaluate(bundle, *args, **kwargs).plain()


SETTINGS = EvaluateSettings(k=(1, 10))


def ratings(pairs, stars=4.0) -> Ratings:
    user, item = (np.array(c, np.int32) for c in zip(*sorted(pairs), strict=True))
    return Ratings(user, item, np.full(len(user), stars, np.float32), np.zeros(len(user), np.int64))


def scorer_of(scores: list[float], seen: list[tuple[int, int]], users: int = 2) -> Scorer:
    """A model with these scores of items for everybody."""
    model = Dot(users, len(scores), 1, "logit")
    with torch.no_grad():
        model.user_vectors.weight.fill_(1.0)
        model.item_vectors.weight[:, 0] = torch.tensor(scores)
    return Scorer(model, None, History.of(ratings(seen), users, len(scores)))


def measured(scorer: Scorer, held_out: Ratings, protocol: Protocol) -> dict[str, list[float]]:
    users = np.unique(held_out.user).astype(np.int64)
    lists = rank_block(scorer, held_out, users, SETTINGS, protocol.candidate_cells(scorer, users))
    return {n: v.tolist() for n, v in compute_metrics(scorer, lists, SETTINGS).values.items()}


def candidates(pairs) -> Candidates:
    user, item = (np.array(c, np.int64) for c in zip(*sorted(pairs), strict=True))
    return Candidates("file", user, item)


def test_the_sampled_order_of_two_models_may_be_the_opposite_of_the_full_one():
    # Item 0 is held out, 9 has been seen. A ranks it third, behind 1 and 2, which are no
    # candidates; B ranks it second, behind 3, which is one.
    a = scorer_of([5, 9, 8, 1, 1, 1, 1, 1, 1, 99], [(0, 9)])
    b = scorer_of([5, 1, 1, 9, 1, 1, 1, 1, 1, 99], [(0, 9)])
    held_out = ratings([(0, 0)])
    sampled = Protocol(kind="sampled", candidates=candidates([(0, 3), (0, 4), (0, 5)]))
    full = [measured(r, held_out, Protocol())["ndcg@10"][0] for r in (a, b)]
    few = [measured(r, held_out, sampled)["ndcg@10"][0] for r in (a, b)]
    assert full == pytest.approx([1 / np.log2(4), 1 / np.log2(3)])
    assert few == pytest.approx([1.0, 1 / np.log2(3)])
    assert [measured(r, held_out, sampled)["hitrate@1"][0] for r in (a, b)] == [1.0, 0.0]


def test_held_out_items_are_ranked_among_the_candidates_as_one_set_with_ties_by_id():
    # Scores by id: 7 3 7 7 1; held out are 2 and 4, candidates 0 and 1: order 0, 2, 1, 4.
    scorer = scorer_of([7, 3, 7, 7, 1], [(0, 3)])
    held_out = ratings([(0, 2), (0, 4)])
    sampled = Protocol(kind="sampled", candidates=candidates([(0, 0), (0, 1), (1, 3)]))
    values = measured(scorer, held_out, sampled)
    best = 1 + 1 / np.log2(3)
    assert values["ndcg@10"] == pytest.approx([(1 / np.log2(3) + 1 / np.log2(5)) / best])
    assert values["hitrate@1"] == [0.0]


def test_among_rated_items_nothing_is_masked_and_nothing_else_is_ranked():
    # Order of the rated ones: 0 (training), 3 (held out), 4 (training); 1 and 2 are not rated.
    scorer = scorer_of([9, 8, 7, 6, 5], [(0, 0), (0, 4), (1, 1)])
    rated = measured(scorer, ratings([(0, 3)]), Protocol(kind="rated"))
    assert rated["mrr@10"] == [1 / 2]
    full = measured(scorer, ratings([(0, 3)]), Protocol())
    assert full["mrr@10"] == [1 / 3]


def test_a_candidate_that_training_does_not_know_is_left_out():
    scorer = scorer_of([1, 2], [(1, 0)])
    sampled = Protocol(kind="sampled", candidates=candidates([(0, 1), (0, 7)]))
    assert measured(scorer, ratings([(0, 0)]), sampled)["mrr@10"] == [1 / 2]


IDS = IdMap(np.array([100, 110, 120]), 3)


def read(tmp_path, text: str) -> Candidates:
    path = tmp_path / "negatives.csv"
    path.write_text(text)
    return Candidates.read(str(path), IDS, IDS)


@pytest.mark.parametrize(
    "header", ["userId,movieId", "item_id,USER_ID", '"uid","rating","track_id"']
)
def test_the_header_of_a_file_may_be_any_that_a_ratings_file_has(tmp_path, header):
    names = header.replace('"', "").split(",")
    fields = {"u": "100", "r": "3.5", "i": "110", "m": "110", "t": "110"}
    row = ",".join(fields[name[0].lower()] for name in names)
    found = read(tmp_path, f"{header}\n{row}\n")
    assert IDS.raw[found.user].tolist() == [100]
    assert IDS.raw[found.item].tolist() == [110]


def test_a_file_is_read_in_raw_ids_and_sorted_by_user(tmp_path):
    found = read(tmp_path, "item,user\n100,120\n110,100\n120,120\n")
    assert (found.user.tolist(), found.item.tolist()) == ([0, 2, 2], [1, 0, 2])
    again = read(tmp_path, "user,item\n100,110\n120,100\n120,120\n")
    assert found == again
    assert len({found, again}) == 1
    assert found != read(tmp_path, "user,item\n100,110\n120,100\n120,110\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("user,item\n100,110\n7,110\n8,110\n", "unknown user '7' in row 2"),
        ("user,item\n100,110\n110,five\n", "unknown item 'five' in row 2"),
        ("user,film\n100,110\n", "columns user, film; rows of user,item are needed"),
        ("user,item\n", "has 0 rows"),
        ("user,item\n1,2,3\n", "no csv file"),
        ("user,item\n,100\n", "unknown user '' in row 1"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_first_mistake(tmp_path, text, words):
    with pytest.raises(RecrayError, match=words):
        read(tmp_path, text)


def negatives_of(bundle, path, users) -> str:
    rows = [f"{raw(u)},{raw(i)}\n" for u in users for i in range(10)]
    path.write_text("user,item\n" + "".join(rows))
    return str(path)


def test_a_sampled_report_is_labelled_and_has_the_papers_metrics_only(make_bundle, tmp_path):
    bundle = make_bundle(preset="dot-mse")
    file = negatives_of(bundle, tmp_path / "n.csv", range(14))
    sampled = Protocol(kind="sampled", negatives=file).resolved(bundle)
    report = evaluate(bundle, EvaluateSettings(k=(2,)), sampled)
    assert set(report["metrics"]) == {"ndcg@2", "hitrate@2"}
    assert report["protocol"]["kind"] == "sampled"
    assert not report["protocol"]["honest"]
    assert "catalogue" not in report
    assert "rmse" not in report["verdict"]
    assert evaluate(bundle, EvaluateSettings(k=(2,)))["protocol"]["honest"]


def test_somebody_without_candidates_is_refused(make_bundle, tmp_path):
    bundle = make_bundle()
    file = negatives_of(bundle, tmp_path / "n.csv", range(1, 13))
    sampled = Protocol(kind="sampled", negatives=file).resolved(bundle)
    with pytest.raises(RecrayError, match=r"no candidates for 2 of 14 users .* first is 100"):
        evaluate(bundle, EvaluateSettings(k=(2,)), sampled)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--protocol", "sampled"], "give both"),
        (["--negatives", "FILE"], "give both"),
        (["--protocol", "sampled", "--negatives", "FILE"], "unknown user '7' in row 1"),
        (["--protocol", "sampled", "--negatives", "/nowhere.csv"], "cannot read /nowhere.csv"),
        (["--protocol", "sampled", "--negatives", "FILE", "--among", "rated"], "exclude"),
        (["--baselines", "ease,knn"], "unknown baseline 'knn'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(make_bundle, tmp_path, options, words):
    (tmp_path / "n.csv").write_text("user,item\n7,100\n")
    given = [str(tmp_path / "n.csv") if o == "FILE" else o for o in options]
    done = CliRunner().invoke(cli, ["evaluate", make_bundle().folder.path, *given])
    assert done.exit_code == 2, done.output
    assert words in done.output
    assert sum(line.startswith("Error") for line in done.output.splitlines()) == 1


# Item-kNN and EASE against formulas written out in numpy; what may stand beside a model.

USERS, ITEMS = 30, 13


@pytest.fixture
def seen() -> np.ndarray:
    """(30, 13) of 0 and 1; user 29 has seen nothing, and nobody has seen item 12."""
    seen = np.random.default_rng(1).random((USERS, ITEMS)) < 0.35
    seen[USERS - 1], seen[:, ITEMS - 1] = False, False
    return seen.astype(float)


def fitted(model, seen: np.ndarray):
    model.fit(histories(seen))
    return model


def histories(seen: np.ndarray) -> RatingsCSR:
    user, item = (torch.tensor(column) for column in np.nonzero(seen))
    begins = torch.searchsorted(user, torch.arange(len(seen) + 1))
    return RatingsCSR(begins, item, torch.ones(len(item)))


def scores(model, seen: np.ndarray) -> np.ndarray:
    return model.score(model.state_of(histories(seen))).numpy()


def knn_by_hand(seen: np.ndarray, kept: int, shrink: float) -> np.ndarray:
    both = seen.T @ seen
    root = np.sqrt(np.diag(both))
    near = both / (np.outer(root, root) + shrink)
    np.fill_diagonal(near, 0)
    weight = np.zeros_like(near)
    for item in range(ITEMS):
        best = sorted(range(ITEMS), key=lambda j, item=item: (-near[item, j], j))[:kept]
        weight[item, best] = near[item, best]
    return seen @ weight.T


@pytest.mark.parametrize(("kept", "shrink"), [(3, 0.5), (5, 10.0), (50, 1.0)])
def test_item_knn_adds_the_similarities_of_the_nearest(seen, kept, shrink, monkeypatch):
    monkeypatch.setattr(item_item, "COUNT_BLOCK", 4)
    model = fitted(ItemKnn(USERS, ITEMS, kept, shrink), seen)
    np.testing.assert_allclose(scores(model, seen), knn_by_hand(seen, kept, shrink), rtol=1e-5)


def test_ease_is_the_ridge_regression_of_each_item_on_the_others(seen, monkeypatch):
    monkeypatch.setattr(item_item, "COUNT_BLOCK", 4)
    model = fitted(Ease(USERS, ITEMS, ridge=2.0), seen)
    expected = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):  # not the closed form: one regression at a time
        rest = np.arange(ITEMS) != item
        x, y = seen[:, rest], seen[:, item]
        expected[rest, item] = np.linalg.solve(x.T @ x + 2.0 * np.eye(ITEMS - 1), x.T @ y)
    np.testing.assert_allclose(model.weight.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(scores(model, seen), seen @ expected, atol=1e-5)


@pytest.mark.parametrize("make", [ItemKnn, Ease])
def test_a_pair_scores_as_in_a_block_and_a_state_is_the_history_of_its_own_user(seen, make):
    model = fitted(make(USERS, ITEMS), seen)
    state = model.state_of(histories(seen))
    user, item = (torch.from_numpy(a.ravel()) for a in np.indices((USERS, ITEMS)))
    pairs = model.logits(state[user], item).reshape(USERS, ITEMS)
    np.testing.assert_allclose(pairs.numpy(), scores(model, seen), rtol=1e-5, atol=1e-7)
    assert torch.equal(model.state_of(histories(seen[3:4])), state[3:4])
    with pytest.raises(ValueError, match="no rows of users"):
        model.user_state(torch.tensor([3]))


def test_counts_of_two_items_are_exact(seen):
    both = Cooccurrence(histories(seen), ITEMS)
    assert np.array_equal(both.rows(2, 9).numpy(), (seen.T @ seen)[2:9])


@pytest.mark.parametrize("name", ["item-knn", "ease"])
def test_somebody_not_in_training_is_ranked_by_their_history_or_by_popularity(seen, name):
    user, item = (a.astype(np.int32) for a in np.nonzero(seen))
    ratings = Ratings(user, item, np.ones(len(user), np.float32), np.zeros(len(user), np.int64))
    history = History.of(ratings, USERS, ITEMS)
    beside = Scorer(Dot(20, ITEMS, 2, "logit"), None, history)  # training knows users 0..19
    scorer = protocol.build_baselines([name], beside)[name]
    ranked = scorer.rank(np.array([5, 25, 29]), 4)
    assert ranked.source.tolist() == [0, 1, 2]
    expected = scorer.model.score(scorer.model.state_of(histories(seen[25:26])))
    expected[0, np.flatnonzero(seen[25])] = -torch.inf
    assert ranked.item[1].tolist() == torch.argsort(-expected[0], stable=True)[:4].tolist()
    popular = np.argsort(-seen.sum(axis=0), kind="stable")
    assert ranked.item[2].tolist() == popular[:4].tolist()
    assert not (ranked.item == NONE).any()


def test_a_baseline_that_reads_order_gets_it_beside_a_model_that_does_not(make_bundle):
    bundle = make_bundle()
    asked = Protocol(baselines=("markov", "recent-popular", "last-item-knn"))
    scorers = Evaluator(bundle, protocol=asked).scorers
    every = bundle.interactions
    cold = every.rows.user >= bundle.model.users  # of whom all is known, of the others what trained
    chosen = np.where(cold, every.part != TEST, every.part == TRAIN)
    before = in_order(every.rows.where(chosen & (every.rows.item < bundle.model.items)))
    assert list(scorers) == ["model", *asked.baselines]
    for name in asked.baselines:
        assert scorers[name].history.item.tolist() == before.item.tolist(), name
    assert scorers["recent-popular"].history.time.tolist() == before.timestamp.tolist()
    user = int(before.user[0])
    last = before.item[before.user == user][-1]
    state, _ = scorers["last-item-knn"].user_embeddings(np.array([user]))
    assert state.nonzero()[:, 1].tolist() == [last]


def test_the_default_leaves_out_what_a_large_catalogue_makes_slow():
    assert protocol.choose_baselines(None, 12_000) == ("popularity", "bias-only", "item-knn")
    assert protocol.choose_baselines(None, 12_001) == ("popularity", "bias-only")


def test_baselines_are_chosen_by_name_in_a_fixed_order():
    assert protocol.choose_baselines(["ease", "popularity", "ease"], 100) == ("popularity", "ease")
    assert protocol.choose_baselines(["item-knn"], 10**6) == ("item-knn",)


@pytest.mark.parametrize(
    ("names", "items", "words"),
    [
        (["ease"], 12_001, "12,001 items are too many, 12,000 are allowed"),
        (["item-kn"], 10, "unknown baseline 'item-kn': did you mean 'item-knn'"),
        ([], 10, "needs at least one of popularity, bias-only, item-knn, ease"),
    ],
)
def test_a_baseline_that_cannot_be_measured_is_refused(names, items, words):
    with pytest.raises(RecrayError, match=words):
        protocol.choose_baselines(names, items)
