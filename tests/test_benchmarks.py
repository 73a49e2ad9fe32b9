"""What benchmarks compare must be the same thing."""

from dataclasses import replace

import numpy as np
import pytest

from recray import benchmarks
from recray.benchmarks import evaluate, experiments, gpu, implicit_als, quality, served, taste
from recray.errors import RecrayError
from recray.evaluation.metrics import PerUserMetrics, RankedBatch
from recray.inference.top_k import NONE, TopK


def test_the_scorer_and_the_loop_it_is_compared_with_give_the_same_lists():
    scorer = evaluate._scorer(20, 400)
    lists = evaluate.argsort_loop(scorer, 20)
    assert np.array_equal(scorer.rank(np.arange(20), evaluate.K).item, lists)


def table(user, values) -> PerUserMetrics:
    return PerUserMetrics(np.array(user), {"ndcg@10": np.array(values, float)}, np.zeros((1, 1)))


def test_a_user_of_two_seeds_is_one_witness_with_the_mean_of_both():
    first, second = table([10, 20], [0.2, 1.0]), table([20, 30], [0.0, np.nan])
    one = experiments.pooled([first, second], "ndcg@10")
    assert one.user.tolist() == [0, 1, 2]
    assert one.values["ndcg@10"].tolist() == pytest.approx([0.2, 0.5, np.nan], nan_ok=True)
    better = [table([10, 20], [0.3, 1.1]), table([20, 30], [0.1, np.nan])]
    over = experiments.paired(better, [first, second], "ndcg@10")
    assert (over.difference, over.low, over.high) == pytest.approx((0.1, 0.1, 0.1))


def test_an_archive_is_found_by_its_release_or_by_a_part_of_it(tmp_path):
    (tmp_path / "ml-1m-part.zip").touch()
    assert experiments.archive("ml-1m", str(tmp_path)).endswith("ml-1m-part.zip")
    (tmp_path / "ml-1m.zip").touch()
    assert experiments.archive("ml-1m", str(tmp_path)).endswith("ml-1m.zip")
    assert experiments.archive("ml-1m", None) == "ml-1m"
    with pytest.raises(RecrayError, match=r"no ml-100k\.zip there"):
        experiments.archive("ml-100k", str(tmp_path))


def test_disliked_hits_are_the_shown_items_that_were_rated_low():
    # User 0 is shown 7 (1 star), 8 (not held out), 9 (4 stars); user 1 is shown 7 (2 stars).
    ranked = TopK(np.array([[7, 8, 9], [7, NONE, NONE]]), np.zeros((2, 3), np.float32), np.zeros(2))
    place, item = np.array([0, 0, 0, 1, 1]), np.array([7, 9, 5, 7, 9])
    rating = np.array([1, 4, 1, 2, 1], np.float32)
    lists = RankedBatch(np.arange(2), place, item, rating, rating > 0, ranked, ranked.item > 0)
    assert taste.ratings_of_hits(lists).tolist() == [1, 4, 2]
    assert taste.disliked_share(taste.ratings_of_hits(lists)) == pytest.approx(2 / 3)


def test_visitors_dislike_well_known_films_of_one_genre():
    genres = [["Horror"] if n % 2 else ["Drama", "War"] for n in range(200)]
    popularity = np.arange(200.0)
    visitors = taste.visitors_of(genres, popularity, "Horror", 3)
    assert [len(set(items)) for items in visitors] == [10, 10, 10]
    assert all(item % 2 and item > 199 - 60 for items in visitors for item in items)
    assert visitors[0].tolist() != visitors[1].tolist()
    assert taste.popularity_share([["A"], ["B"], ["A"]], np.array([1.0, 6.0, 1.0]), "A") == 0.25


def test_places_that_a_user_has_rated_are_counted_by_the_name_of_the_film():
    # Items 1 and 2 are one film; user 7 has rated it as 1, and 3 as well.
    titles = {1: "Heat", 2: "Heat", 3: "Alien", 4: "Brazil", 5: "Clue"}
    known = served.Known([7, 7, 8], [1, 3, 5], titles)
    assert known.share({7: [4, 5], 8: [1, 3]}) == 0
    assert known.share({7: [2, 4], 8: [1, 5]}) == 0.5
    assert known.share({}) == 0
    # Two films are left for user 7 and three for user 8; lists end there, not at ten.
    assert known.short({7: [4, 5], 8: [2, 3, 4]}, [2, 3, 4, 5]) == 0
    assert known.short({7: [4], 8: [2, 3, 4]}, [2, 3, 4, 5]) == 1


def test_every_figure_can_be_measured_alone_and_has_one_experiment():
    names = quality.FIGURES
    assert len(set(names)) == len(names)
    assert {f"fold_in_{n}" for n in (1, 2, 3, 5, 10, 20)} <= set(names)
    assert {f"rmse_u1_{p}" for p in ("dot-mse", "gmf", "neumf", "softmax-dnn")} <= set(names)
    assert set(quality.QUICK.figures) <= set(names)
    with pytest.raises(RecrayError, match="did you mean 'served_known_share'"):
        quality.run(quality.QUICK, print, only="served_known_shares")


def test_the_gpu_table_has_a_row_for_each_family_and_goes_on_after_a_failure(monkeypatch):
    """On the CPU and at tiny sizes: the code is the same."""
    monkeypatch.setitem(gpu.SIZES, "ml-20m", (60, 30))
    monkeypatch.setitem(gpu.SIZES, "ml-25m", (50, 40))
    small = "model.dim=4", "train.batch_size=16", "train.precision=float32"
    tasks = []
    for task in gpu.TASKS:
        changes = [c for c in task.changes if not c.startswith("train.compile=true")]
        changes += small if task.preset != "ranking" else small[:1]
        tasks.append(replace(task, changes=tuple(changes), ratings=900, share=1.0))
    tasks[1] = replace(tasks[1], changes=("model.dim=4", "model.kind=hybrid"))
    lines: list[str] = []
    found = gpu.run(tuple(tasks), 1, lines.append, device="cpu")
    rows = {row.task: row for row in found.rows}
    assert list(rows) == [task.name for task in gpu.TASKS]
    failed = rows.pop("exact_solves_128")
    assert failed.seconds is None
    assert "needs model.item_features" in failed.error
    for name, row in rows.items():
        assert row.error is None, f"{name}: {row.error}"
        assert row.seconds > 0
        assert found.figures[f"gpu_{name}_per_s"] == row.per_s > 0
    assert len(lines) == len(tasks)
    monkeypatch.setattr(gpu, "LAST_BEGIN_S", -1.0)
    late = gpu.run(gpu.TASKS[:1], 1, lines.append, device="cpu")
    assert late.rows[0].error == "there was no time left"


def test_exact_solves_beside_implicit_need_the_package(monkeypatch):
    monkeypatch.setattr(implicit_als, "find_spec", lambda name: None)
    with pytest.raises(RecrayError, match="pip install 'recray\\[implicit\\]'"):
        benchmarks.run("train", True, print, only="implicit")
    with pytest.raises(RecrayError, match="implicit"):
        benchmarks.run("train", True, print, only="surprise")


def test_held_out_pairs_are_not_trained_on_and_ranked_first_they_are_1():
    pairs = implicit_als.Pairs.drawn(implicit_als.SMALL)
    parts = (pairs.train, pairs.valid, pairs.test)
    train, valid, test = (set(zip(*(x.tolist() for x in part), strict=True)) for part in parts)
    assert all((train, valid, test))
    assert not train & valid
    assert not (train | valid) & test
    perfect = np.zeros((300, 200), np.float32)
    perfect[pairs.test] = 1
    tables = perfect, np.eye(200, dtype=np.float32)
    assert pairs.ndcg(tables, pairs.test) == pytest.approx(1)
