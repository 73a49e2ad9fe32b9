"""The users of a worker: local ids, and first rows that do not depend on who has a part."""

from functools import partial

import numpy as np
import pytest
import torch

from recray.config import load_settings
from recray.models.base import build_model
from recray.training.own_users import OwnUsers, first_model, moments_of, user_weights

PARTS = [[7, 2], [], [0, 5, 9], [4]]
"""Dense ids of each part, in no order over parts; 1, 3, 6 and 8 are in none."""
KINDS = ("dot-mse", "neumf", "softmax-dnn", "gmf")


def users_of(parts: list[int], total: int = 10) -> OwnUsers:
    return OwnUsers.of(parts, [np.array(sorted(PARTS[part]), np.int64) for part in parts], total)


def test_local_ids_are_places_in_the_list_of_the_parts():
    own = users_of([0, 1, 2])
    assert (own.ids.tolist(), own.begins, len(own)) == ([2, 7, 0, 5, 9], (0, 2, 2, 5), 5)
    assert own.local(torch.tensor([9, 2, 2, 0])).tolist() == [4, 0, 0, 2]
    assert own.places(np.array([4, 7, 10])).tolist() == [-1, 1, -1]
    with pytest.raises(ValueError, match="another worker"):
        own.local(torch.tensor([4]))
    assert users_of([1]).places(np.array([0, 1])).tolist() == [-1, -1]


@pytest.mark.parametrize("preset", KINDS)
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_first_rows_are_those_of_one_worker(preset, workers):
    sizes = {"dim": 3, "mlp_dim": 2, "layers": [4, 3], "levels": [1, 5]}
    build = partial(build_model, load_settings(preset).changed(model=sizes))
    one = users_of([0, 1, 2, 3])
    whole = first_model(build, one, 6, 5).state_dict()
    tables = user_weights(build(1, 1))
    for rank in range(workers):
        own = users_of(list(range(rank, 4, workers)))
        mine = first_model(build, own, 6, 5).state_dict()
        for name, value in mine.items():
            expected = whole[name][one.local(own.ids)] if name in tables else whole[name]
            assert torch.equal(value, expected), name
    assert tables
    rows = whole[tables[0]]
    assert len(rows.unique(dim=0)) == len(one), "every user begins elsewhere"


def test_moments_are_those_of_the_users_of_all_workers():
    build = partial(build_model, load_settings("dot-mse").changed(model={"dim": 3}))
    whole = first_model(build, users_of([0, 1, 2, 3]), 6, 5)
    parts = [first_model(build, users_of(own), 6, 5) for own in ([0, 1], [2, 3])]
    heard: list[list[torch.Tensor]] = []
    for model in parts:  # what each worker gives, first with its own mean and then with that of all
        given: list[torch.Tensor] = []
        moments_of(model, lambda value, given=given: given.append(value.clone()) or value)
        heard.append(given)
    counts, sums = ([part[n] for part in heard] for n in (0, 1))
    answers = [sum(counts), sum(sums)]
    squares = torch.zeros(3, dtype=torch.float64)
    for model in parts:
        replies = iter([*answers, None])

        def add(value: torch.Tensor, replies=replies) -> torch.Tensor:
            reply = next(replies)
            if reply is None:
                squares.add_(value)
            return value if reply is None else reply.clone()

        mean = moments_of(model, add).mean
    expected = whole.user_moments()
    assert torch.allclose(mean, expected.mean)
    assert torch.allclose(squares / len(users_of([0, 1, 2, 3])), expected.variance)
