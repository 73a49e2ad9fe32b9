"""data.half_life: old ratings weigh less in the exact solves."""

import dataclasses

import pytest
import torch

from recray.config import Settings
from recray.errors import RecrayError
from recray.models.factorization import Dot
from recray.models.objectives import ImplicitALS, build_objective
from recray.schema import UNKNOWN_TIME
from recray.training.als import ALSEpochs
from recray.training.checks import check_half_life
from recray.training.own_users import OwnUsers
from recray.training.shard import Shard, Workers, time_decay

DAY = 86_400
TIME = torch.tensor([0, 10, 30, UNKNOWN_TIME, 20, 30]) * 1
TIME[TIME != UNKNOWN_TIME] *= DAY


def shard(time=TIME):
    user, item = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 2, 1, 3, 0])
    return Shard(user, item, torch.ones(6), OwnUsers.everyone(3), time)


@dataclasses.dataclass(frozen=True)
class Two(Workers):
    """The first of two workers; the other one's oldest and latest times are planted."""

    other: tuple[int, int] = (0, 0)

    def sum(self, value):
        value[1] = torch.tensor(self.other)
        return value


def test_a_rating_weighs_half_after_each_half_life():
    weight = time_decay(shard(), 10.0, Workers())
    assert weight.tolist() == [0.125, 0.25, 1.0, 0.125, 0.5, 1.0], "unknown is as old as the oldest"


def test_the_latest_time_is_that_of_all_workers():
    later = time_decay(shard(), 10.0, Two(size=2, other=(-10 * DAY, 40 * DAY)))
    assert later.tolist() == [0.0625, 0.125, 0.5, 0.03125, 0.25, 0.5]
    without = time_decay(shard(), 10.0, Two(size=2, other=(UNKNOWN_TIME, UNKNOWN_TIME)))
    assert torch.equal(without, time_decay(shard(), 10.0, Workers())), "the other has no times"


def test_ratings_without_any_time_weigh_alike():
    unknown = torch.full((6,), UNKNOWN_TIME)
    assert time_decay(shard(unknown), 3.0, Workers()).tolist() == [1.0] * 6
    with pytest.raises(ValueError, match="times of ratings"):
        time_decay(shard(None), 3.0, Workers())


@pytest.mark.parametrize("half_life", [None, 10.0])
def test_the_solve_weighs_each_rating_by_its_age(half_life):
    torch.manual_seed(0)
    model = Dot(3, 4, 2, "logit").double()
    rows = dataclasses.replace(shard(), rating=torch.ones(6, dtype=torch.float64))
    objective = ImplicitALS(0.1, 0.05, half_life=half_life)
    ALSEpochs(model, objective, rows, Workers()).run(0)
    items = model.item_vectors.weight.detach()
    weight = torch.ones(6) if half_life is None else time_decay(rows, half_life, Workers())
    for user in range(3):
        own = rows.user == user
        vectors = items[rows.item[own]]
        weighted = vectors * weight[own].double()[:, None]
        matrix = weighted.T @ vectors + 0.1 * items.T @ items
        matrix += 0.05 * (int(own.sum()) + 0.1 * 4) * torch.eye(2, dtype=torch.float64)
        expected = torch.linalg.solve(matrix, weighted.sum(dim=0))
        assert torch.allclose(model.user_vectors.weight[user], expected, rtol=1e-6)


def test_the_setting_reaches_the_objective_and_others_refuse_it():
    def settings(kind, optimizer):
        groups = {"objective": {"kind": kind}, "train": {"optimizer": optimizer}}
        return Settings.model_validate({**groups, "data": {"half_life": 30}})

    als = settings("ials", "alternating")
    check_half_life(als)
    assert build_objective(als, 1, 5).half_life == 30
    with pytest.raises(RecrayError, match=r"objective\.kind=bpr weighs old ratings as new ones"):
        check_half_life(settings("bpr", "adam"))
