"""Models fitted in closed form: the formula by brute force, and the same digits for any workers."""

import inspect

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recray.config import load_settings
from recray.errors import RecrayError
from recray.models import MODELS as REGISTERED
from recray.models import counts, markov
from recray.models.counts import ALONE
from recray.models.history import RatingsCSR
from recray.models.markov import Markov
from recray.models.next_ridge import NextRidge
from recray.models.recent_popular import RecentPopular
from recray.schema import UNKNOWN_TIME
from recray.training.shard import Workers

from .test_training import training_run, two_tastes

USERS, ITEMS, DAY = 40, 13, 86_400


@pytest.fixture
def histories() -> list[list[int]]:
    """Histories of 40 users over 13 items, each item once; user 0 has none and user 1 has one."""
    rng = np.random.default_rng(4)
    lengths = [0, 1, *rng.integers(2, ITEMS, USERS - 2)]
    return [rng.permutation(ITEMS - 1)[:length].tolist() for length in lengths]


def csr(histories: list[list[int]], times: list[list[int]] | None = None, now=None) -> RatingsCSR:
    indptr = torch.tensor([0, *np.cumsum([len(h) for h in histories])])
    item = torch.tensor([i for h in histories for i in h], dtype=torch.int64)
    time = None if times is None else torch.tensor([t for h in times for t in h])
    now = None if now is None else torch.tensor(now)
    return RatingsCSR(indptr, item, torch.ones(len(item)), time, now)


def scores(model, known: RatingsCSR) -> np.ndarray:
    return model.score(model.state_of(known)).numpy()


def markov_by_hand(histories, window, decay, recent, recent_decay, p, q) -> np.ndarray:
    table, popularity = np.zeros((ITEMS, ITEMS)), np.zeros(ITEMS)
    for history in histories:
        for i, a in enumerate(history):
            popularity[a] += 1
            for k, b in enumerate(history[i + 1 : i + 1 + window], start=1):
                table[a, b] += decay ** (k - 1)
    table /= (table.sum(axis=1, keepdims=True) + 1) ** p
    table /= np.maximum(popularity, 1) ** q
    out = np.zeros((len(histories), ITEMS))
    for user, history in enumerate(histories):
        for j, item in enumerate(history[::-1][:recent]):
            out[user] += recent_decay**j * table[item]
    return out


@pytest.mark.parametrize(
    "settings", [(10, 0.8, 10, 0.8, 1.0, 0.0), (2, 0.5, 3, 0.6, 0.7, 0.4), (1, 1.0, 1, 1.0, 0.0, 1)]
)
def test_markov_is_its_formula(histories, settings, monkeypatch):
    monkeypatch.setattr(counts, "BLOCK_PAIRS", 64)  # several blocks of items
    monkeypatch.setattr(markov, "ENTRIES", 50)  # and of users
    model = Markov(USERS, ITEMS, *settings)
    model.fit(csr(histories), ALONE)
    expected = markov_by_hand(histories, *settings)
    np.testing.assert_allclose(scores(model, csr(histories)), expected, rtol=2e-6, atol=1e-9)


def test_what_followed_nothing_comes_last_the_most_rated_first():
    followed = [[0, 1], [5, 4], [4, 3], [3, 4], [4, 5]]  # nothing but 1 ever came after 0
    model = Markov(5, 6, popularity_power=0.0)
    model.fit(csr([np.array(one) for one in followed]), ALONE)
    best = scores(model, csr([np.array([0])]))[0].argsort()[::-1]
    assert best[:2].tolist() == [1, 4], "4 has most of the ratings"
    assert set(best[2:4].tolist()) == {3, 5}
    assert best[-1] == 2, "nobody has rated it"


def ridge_by_hand(histories, window, decay, ahead, ahead_decay, recent, g, q, ridge):
    past, came, popularity = [], [], np.zeros(ITEMS)
    for history in histories:
        for t in range(len(history)):
            popularity[history[t]] += 1
            if not t:
                continue  # nothing came before the first one
            x, y = np.zeros((2, ITEMS))
            for j, item in enumerate(history[:t][::-1][:window]):
                x[item] = decay**j
            for f, item in enumerate(history[t : t + ahead]):
                y[item] = ahead_decay**f
            past.append(x), came.append(y)
    x, y = np.array(past), np.array(came)
    weight = np.linalg.solve(x.T @ x + ridge * np.eye(ITEMS), x.T @ y)
    weight /= np.maximum(popularity, 1) ** q
    state = np.zeros((len(histories), ITEMS))
    for user, history in enumerate(histories):
        for j, item in enumerate(history[::-1][:recent]):
            state[user, item] = g**j
    return state @ weight


@pytest.mark.parametrize(
    "settings",
    [(10, 0.8, 1, 0.8, 10, 0.8, 0, 3), (3, 0.7, 4, 0.6, 3, 0.9, 0.3, 0.5)],
)
def test_next_ridge_is_the_regression_of_what_came_on_the_past(histories, settings, monkeypatch):
    monkeypatch.setattr(counts, "BLOCK_PAIRS", 64)
    model = NextRidge(USERS, ITEMS, *settings)
    model.fit(csr(histories), ALONE)
    expected = ridge_by_hand(histories, *settings)
    np.testing.assert_allclose(scores(model, csr(histories)), expected, atol=2e-6)


def recent(times=None, now=None, days=2) -> np.ndarray:
    """Somebody's scores: of three items, 0 was rated long ago, 1 the day before, 2 on the last."""
    rated = [[0, 1], [0, 1, 2], [0], [2]]
    when = times or [[5, 9 * DAY], [6, 9 * DAY + 1, 10 * DAY], [7], [UNKNOWN_TIME]]
    model = RecentPopular(4, 4, days)
    model.fit(csr(rated, when), ALONE)
    return scores(model, csr([[3]], now=[now] if now is not None else None))[0]


@pytest.mark.parametrize(
    ("now", "days", "expected"),
    [
        (11 * DAY, 1, [0, 1, 1, 0]),  # the last day of the training, though it is over
        (11 * DAY, 20, [3, 2, 1, 0]),
        (10 * DAY - 1, 1, [0, 1, 0, 0]),  # item 2 came later
        (9 * DAY, 1, [0, 1, 0, 0]),  # not the rating of item 1 one second later
        (9 * DAY - 1, 1, [0, 0, 0, 0]),
        (5 * DAY, 9, [3, 0, 0, 0]),
        (-(DAY << 32) + 10 * DAY, 20, [0, 0, 0, 0]),  # more days ago than 32 bits hold
        (UNKNOWN_TIME, 1, [0, 1, 1, 0]),
    ],
)
def test_recent_popular_counts_whole_days_before_now(now, days, expected):
    share = np.array([3, 2, 2, 0]) / 8  # one more than the 7 ratings, those of unknown time too
    np.testing.assert_allclose(recent(now=now, days=days), expected + share, rtol=1e-6)


def test_recent_popular_asks_for_times():
    with pytest.raises(RecrayError, match="no training rating has one"):
        recent(times=[[UNKNOWN_TIME] * 2, [UNKNOWN_TIME] * 3, [UNKNOWN_TIME], [UNKNOWN_TIME]])


MODELS = {
    "markov": lambda: Markov(USERS, ITEMS, 3, 0.8, 4, 0.7, 0.6, 0.2),
    "next-ridge": lambda: NextRidge(USERS, ITEMS, 4, 0.8, 2, ridge=1.0),
    "recent-popular": lambda: RecentPopular(USERS, ITEMS, 3),
}
every_model = pytest.mark.parametrize("kind", MODELS)


def timed(histories) -> RatingsCSR:
    """Histories with times: one rating of a user every 7 hours."""
    return csr(histories, [[DAY + 25_200 * n for n in range(len(h))] for h in histories])


@every_model
def test_a_pair_scores_as_in_a_block_and_alone_as_among_others(kind, histories):
    model, known = MODELS[kind](), timed(histories)
    model.fit(known, ALONE)
    whole = scores(model, known)
    blocks = [model.score_items(model.state_of(known), n, min(n + 5, ITEMS)) for n in (0, 5, 10)]
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), whole, rtol=1e-6, atol=1e-7)
    user, item = (torch.from_numpy(a.ravel()) for a in np.indices((USERS, ITEMS)))
    pairs = model.logits(model.state_of(known)[user], item).reshape(USERS, ITEMS)
    np.testing.assert_allclose(pairs, whole, rtol=1e-5, atol=1e-7)
    begin, end = known.indptr[7:9].tolist()
    alone = csr([histories[7]])._replace(time=known.time[begin:end])
    assert torch.equal(model.state_of(alone)[0], model.state_of(known)[7])


def _fit_part(rank: int, size: int, folder: str, histories: list[list[int]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/r{size}", rank=rank, world_size=size)
    # Unequal parts; with four workers one has nobody.
    own = [h if min(n % 5, 2) == rank else [] for n, h in enumerate(histories)]
    if size == 1:
        own = histories
    if size == 2:
        own = [h if min(n % 5, 1) == rank else [] for n, h in enumerate(histories)]
    for kind, make in MODELS.items():
        model = make()
        model.fit(timed(own), Workers(rank, size))
        torch.save(model.state_dict(), f"{folder}/{kind}-{size}-{rank}")
    dist.destroy_process_group()


def test_one_worker_and_many_count_the_same_to_the_digit(histories, tmp_path):
    for size in (1, 2, 4):
        mp.start_processes(
            _fit_part, (size, str(tmp_path), histories), nprocs=size, start_method="fork"
        )
    for kind in MODELS:
        one = torch.load(tmp_path / f"{kind}-1-0")
        assert any(value.any() for value in one.values())
        for size, rank in [(2, 0), (2, 1), (4, 0), (4, 3)]:
            several = torch.load(tmp_path / f"{kind}-{size}-{rank}")
            for name, value in one.items():
                assert torch.equal(several[name], value), f"{kind} {name}: {size} workers"


@pytest.mark.parametrize("kind", ["markov", "next-ridge", "ease", "item-knn", "recent-popular"])
def test_a_model_without_settings_is_that_of_its_preset(kind):
    """A baseline is made without settings, so it is the model that the preset trains."""
    settings, model = load_settings(kind).model, REGISTERED[kind]
    for name, parameter in inspect.signature(model).parameters.items():
        if hasattr(settings, name):
            assert parameter.default == getattr(settings, name), name


@every_model
def test_a_fit_of_another_length_loads_what_was_saved(kind, histories):
    model, fresh = MODELS[kind](), MODELS[kind]()
    model.fit(timed(histories))
    fresh.load_state_dict(model.state_dict())
    assert np.array_equal(scores(fresh, timed(histories)), scores(model, timed(histories)))


@pytest.mark.parametrize("kind", ["markov", "next-ridge", "ease", "item-knn"])
def test_a_finished_run_is_resumed_with_the_weights_that_it_has(kind, tmp_path):
    shard, _ = two_tastes()
    run = training_run(tmp_path, kind, shard)
    assert "loss" not in run.fit().history[0], "nothing is minimised"
    again = training_run(tmp_path, kind, shard)
    assert again.fit().epoch == 1
    for name, value in run.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
        assert value.any(), name
