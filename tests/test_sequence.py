"""Self-attention over histories: what it may see, its loss, and that it learns what comes next."""

import pytest
import torch
from torch.nn import functional

from recray.config import load_settings, overridden
from recray.errors import RecrayError
from recray.models import build_model
from recray.models.history import RatingsCSR
from recray.models.objectives import NextItem, build_objective
from recray.models.objectives.next_item import NO_TARGET, Candidates
from recray.models.sequence import UNKNOWN, Sequence, Windows, buckets
from recray.schema import UNKNOWN_TIME
from recray.training.checkpoint import RunFolder
from recray.training.loop import TrainingRun
from recray.training.next_item import NextItemEpochs
from recray.training.own_users import OwnUsers
from recray.training.shard import Shard, Workers, epoch_generator

ITEMS, LENGTH = 12, 6


def model_of(time=False, **sizes) -> Sequence:
    """A small model whose weights are far from 0, so that everything has an effect."""
    torch.manual_seed(1)
    model = Sequence(3, ITEMS, dim=8, length=LENGTH, time=time, **sizes).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.5)
    return model


def known(*histories, now=None) -> RatingsCSR:
    """Histories of (items, times)."""
    items, times = zip(*histories, strict=True)
    csr = RatingsCSR.of([(torch.tensor(i, dtype=torch.int64), torch.ones(len(i))) for i in items])
    time = torch.cat([torch.tensor(t, dtype=torch.int64) for t in times])
    return csr._replace(time=time, now=None if now is None else torch.tensor(now))


LONG = [5, 1, 7, 2, 9, 0, 3, 8], [0, 0, 60, 60, 4000, 4000, 4001, 90000]
SHORT = [4, 6], [10, 500]


@pytest.mark.parametrize("time", [False, True])
def test_a_state_follows_from_the_end_of_the_users_own_history(time):
    model = model_of(time)
    both = model.state_of(known(LONG, ([], []), SHORT))
    end = tuple(part[-LENGTH:] for part in LONG)
    alone = [model.state_of(known(one))[0] for one in (LONG, SHORT)]
    assert torch.allclose(both[[0, 2]], torch.stack(alone), atol=1e-12)
    assert torch.allclose(model.state_of(known(end))[0], alone[0], atol=1e-12)
    assert both[1].abs().max() == 0, "without any rating"
    other = ([*LONG[0][-2:], *LONG[0][:-2]], LONG[1])
    assert (model.state_of(known(other))[0] - alone[0]).abs().max() > 0.01, "it reads the order"


@pytest.mark.parametrize("empty", [1, 3])
def test_users_without_any_rating_have_a_state(empty):
    state = model_of().state_of(known(*[([], [])] * empty))
    assert state.shape == (empty, 8)
    assert state.abs().max() == 0


def windows_of(items, lengths, times=None) -> Windows:
    time = None if times is None else torch.tensor(times)
    return Windows(torch.tensor(items), torch.tensor(lengths), time)


@pytest.mark.parametrize("time", [False, True])
def test_no_state_depends_on_what_comes_later(time):
    model = model_of(time)
    times = [[0, 5, 5, 900], [0, 5, 5, 70_000]]
    first, second = model.encode(windows_of([[1, 2, 3, 4], [1, 2, 3, 9]], [4, 4], times))
    same = (first - second).abs().amax(dim=-1)
    assert same[:3].max() < 1e-12
    assert same[3] > 0.01
    last = model.encode(windows_of([[1, 2, 3, 4], [1, 2, 3, 0]], [4, 3], times), last_only=True)
    assert torch.allclose(last[0, 0], first[3], atol=1e-12)
    if time:  # a position is counted from the end, so it would be another one
        assert torch.allclose(last[1, 0], first[2], atol=1e-12)


def test_times_and_when_the_list_is_asked_for_matter_and_may_be_unknown():
    model = model_of(time=True)
    at_once = model.state_of(known(LONG))[0]
    assert torch.equal(at_once, model.state_of(known(LONG, now=[90000]))[0])
    assert (at_once - model.state_of(known(LONG, now=[9_000_000]))[0]).abs().max() > 0.001
    later = [t + 10**9 for t in LONG[1]]
    assert torch.allclose(at_once, model.state_of(known((LONG[0], later)))[0], atol=1e-12)
    timeless = model.state_of(known((LONG[0], [UNKNOWN_TIME] * 8)))[0]
    without = known(LONG)._replace(time=None)
    assert torch.allclose(timeless, model.state_of(without)[0], atol=1e-12)
    assert (timeless - at_once).abs().max() > 0.01
    blind = model_of(time=False)
    assert torch.equal(blind.state_of(known(LONG)), blind.state_of(without))


def test_times_fall_into_two_buckets_for_each_doubling():
    seconds = [-5, 0, 1, 2, 3, 4, 5, 6, 2**31 + 5, 2**40]
    begin = torch.full((len(seconds),), 1_000_000_000)
    found = buckets(begin, begin + torch.tensor(seconds)).tolist()
    assert found == [0, 0, 1, 3, 4, 5, 5, 6, UNKNOWN - 1, UNKNOWN - 1]
    unknown = torch.tensor([UNKNOWN_TIME])
    assert buckets(unknown, begin[:1]).tolist() == [UNKNOWN]
    assert buckets(begin[:1], unknown).tolist() == [UNKNOWN]


def test_a_dim_that_heads_do_not_divide_is_refused():
    with pytest.raises(RecrayError, match=r"model\.dim=9 is no multiple of model\.heads=2"):
        build_model(load_settings("sequence", None, ["model.dim=9"]), 2, 3)
    with pytest.raises(RecrayError, match=r"use it with model\.kind=sequence"):
        NextItem().check(build_model(load_settings("dot-mse"), 2, 3))


# ------------------------------------------------------------------------------------- the loss

ITEM = [[1, 5, 2, 7], [3, 4, 0, 0]]
TARGET = [[5, 2, 7, 8], [4, 9, NO_TARGET, NO_TARGET]]


def slopes(loss, model):
    return dict(zip(dict(model.named_parameters()), gradients(loss, model), strict=True))


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


@pytest.mark.parametrize("size", [2, 1000])
def test_the_loss_and_its_gradients_are_those_of_a_softmax_without_what_was_seen(monkeypatch, size):
    monkeypatch.setitem(NextItem.CHUNK, "cpu", size)
    model, windows = model_of(), windows_of(ITEM, [4, 2])
    target = torch.tensor(TARGET)
    loss = NextItem().loss(model, windows, target)
    score = model.encode(windows) @ model.item_vectors.weight.T
    seen = torch.zeros_like(score, dtype=torch.bool)
    for window, length in enumerate((4, 2)):
        for place in range(length):
            seen[window, place, ITEM[window][: place + 1]] = True
    score = score.masked_fill(seen, -torch.inf).flatten(0, 1)
    truth = functional.cross_entropy(
        score, target.flatten(), ignore_index=NO_TARGET, reduction="sum"
    )
    assert torch.allclose(loss, truth, atol=1e-10)
    expected = slopes(truth, model)
    for name, slope in slopes(loss, model).items():
        assert torch.allclose(slope, expected[name], atol=1e-10), name


def test_drawn_items_weigh_as_many_as_they_are_rarely_drawn():
    model, windows, target = model_of(), windows_of(ITEM, [4, 2]), torch.tensor(TARGET)
    popularity = 3.0 + torch.arange(ITEMS)
    generator = torch.Generator().manual_seed(0)
    candidates = Candidates.draw(popularity, 200_000, generator)
    loss = NextItem(200_000).loss(model, windows, target, candidates)
    score = (model.encode(windows) @ model.item_vectors.weight.T).flatten(0, 1)
    truth = functional.cross_entropy(
        score, target.flatten(), ignore_index=NO_TARGET, reduction="sum"
    )
    assert torch.allclose(loss, truth, rtol=0.01)
    expected = slopes(truth, model)
    for name, slope in slopes(loss, model).items():
        assert (slope - expected[name]).abs().max() < 0.03 * expected[name].abs().max(), name


# ------------------------------------------------------------------------------------- training


def walks(users=60, items=30, steps=14, time=True) -> Shard:
    """Everybody walks the same circle of items from a place of their own."""
    start = torch.arange(users) * 7
    item = (start[:, None] + torch.arange(steps)) % items
    when = (torch.arange(users)[:, None] + torch.arange(steps) * 100).reshape(-1)
    user = torch.arange(users).repeat_interleave(steps)
    every = OwnUsers.everyone(users)
    return Shard(user, item.reshape(-1), torch.ones(len(user)), every, when if time else None)


def run_of(folder, shard, *changes, **given) -> TrainingRun:
    base = load_settings("sequence").sized(60, 30)
    small = {"dim": 16, "length": 8, "dropout": 0.1}
    settings = overridden(base.changed(model=small, train={"batch_size": 16}), changes)
    torch.manual_seed(settings.train.seed)
    model = build_model(settings, 60, 30)
    arguments = {
        "settings": settings,
        "model": model,
        "objective": build_objective(settings, 1.0, 1.0),
        "shard": shard,
        "checkpoints": RunFolder(str(folder)),
        "workers": Workers(),
        "validate": None,
        "report": lambda _metrics: None,
    }
    return TrainingRun(**(arguments | given))


@pytest.mark.parametrize("changes", [["model.time=false"], [], ["objective.negatives=20"]])
def test_a_circle_is_learned(tmp_path, changes):
    run = run_of(tmp_path, walks(), "train.epochs=12", "train.lr=0.02", *changes)
    run.fit()
    item = torch.tensor([28, 29, 0, 1, 2])
    with torch.no_grad():
        state = run.model.eval().state_of(RatingsCSR.one(item, torch.ones(5)))
        score = run.model.score(state)[0]
    score[item] = -torch.inf
    assert score.argmax() == 3


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    class Killed(Exception):
        pass

    def kill(metrics):
        if metrics["epoch"] == 2:
            raise Killed

    whole = run_of(tmp_path / "whole", walks(), "train.epochs=3")
    whole.fit()
    with pytest.raises(Killed):
        run_of(tmp_path / "broken", walks(), "train.epochs=3", report=kill).fit()
    resumed = run_of(tmp_path / "broken", walks(), "train.epochs=3")
    resumed.fit()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_every_rating_but_the_first_is_predicted_once_an_epoch(tmp_path):
    counts = torch.tensor([1, 2, 8, 9, 10, 17, 30])
    user = torch.repeat_interleave(torch.arange(7), counts)
    shard = Shard(user, torch.arange(len(user)) % 30, torch.ones(len(user)), OwnUsers.everyone(7))
    run = run_of(tmp_path, shard, "train.batch_size=4")
    epochs = NextItemEpochs(run.model, NextItem(), shard, run.settings.train, Workers())
    first = counts.cumsum(dim=0) - counts
    expected = [row for row in range(len(user)) if row not in first.tolist()]
    cuts = set()
    for epoch in range(20):
        begin, size = epochs.windows(epoch_generator(0, epoch, 0))
        assert size.min() >= 1
        assert size.max() <= 8
        pieces = zip(begin.tolist(), size.tolist(), strict=True)
        targets = [row + 1 for start, length in pieces for row in range(start, start + length)]
        assert sorted(targets) == expected
        steps = epochs._steps(size, epoch_generator(0, epoch, 0))
        assert len(steps) == epochs.plan.steps
        assert sorted(torch.cat(steps).tolist()) == list(range(len(size)))
        cuts.add(tuple(sorted(begin.tolist())))
    assert len(cuts) > 10, "an epoch cuts where the one before did not"


def test_without_a_second_rating_nothing_can_be_learned(tmp_path):
    one_each = walks(steps=1)
    with pytest.raises(RecrayError, match=r"next-item: no user has two ratings to train on"):
        run_of(tmp_path, one_each).fit()


def test_a_large_catalogue_is_sampled():
    settings = load_settings("sequence")
    assert settings.sized(10, 20_000).objective.negatives == "all"
    assert settings.sized(10, 20_001).objective.negatives == 4096
    with pytest.raises(RecrayError, match="negatives=auto goes with kind=next-item"):
        load_settings("neumf-ranking", None, ["objective.negatives=auto"])
    with pytest.raises(RecrayError, match=r"adagrad does not go with objective\.kind=next-item"):
        load_settings("sequence", None, ["train.optimizer=adagrad"])
