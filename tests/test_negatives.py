"""Negatives: in range, by the shares that were asked for, and never what must not be drawn."""

import pytest
import torch

from recray.data.negatives import NegativeSampler, sampling_probabilities
from recray.errors import RecrayError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_uniform_negatives_cover_the_catalogue_evenly():
    drawn = NegativeSampler(10, 5).draw(torch.zeros(4000, dtype=torch.int64), generator())
    assert drawn.item.shape == drawn.weight.shape == (4000, 5)
    share = torch.bincount(drawn.item.flatten(), minlength=10) / 20_000
    assert (share - 0.1).abs().max() < 0.01
    assert torch.allclose(drawn.log_share.exp(), torch.full((10,), 0.1))


def test_popular_items_are_drawn_by_their_count_to_three_quarters():
    counts = torch.tensor([1.0, 16.0, 81.0, 256.0])
    expected = torch.tensor([1.0, 8.0, 27.0, 64.0]) / 100
    assert torch.allclose(sampling_probabilities(4, counts).float(), expected)
    drawn = NegativeSampler(4, 3, counts).draw(torch.zeros(9000, dtype=torch.int64), generator())
    share = torch.bincount(drawn.item.flatten(), minlength=4) / 27_000
    assert (share - expected).abs().max() < 0.01
    assert torch.allclose(drawn.log_share.exp(), expected)


def test_an_item_nobody_rated_can_be_drawn():
    assert sampling_probabilities(2, torch.tensor([0.0, 5.0])).min() > 0


@pytest.mark.parametrize("popularity", [None, torch.tensor([4.0, 4.0, 1.0, 1.0, 1.0, 1.0])])
def test_known_positives_are_never_drawn(popularity):
    known = torch.tensor([0 * 6 + 0, 0 * 6 + 1, 1 * 6 + 5, 2 * 6 + 3])
    sampler = NegativeSampler(6, 4, popularity, known)
    user = torch.arange(3).repeat_interleave(500)
    drawn = sampler.draw(user, generator())
    pairs = user[:, None] * 6 + drawn.item
    assert not torch.isin(pairs[drawn.weight > 0], known).any()
    assert drawn.weight.mean() > 0.99


def test_a_user_who_rated_everything_has_negatives_of_weight_0():
    sampler = NegativeSampler(3, 2, None, torch.arange(3))
    drawn = sampler.draw(torch.tensor([0, 1]), generator())
    assert drawn.weight.tolist() == [[0, 0], [1, 1]]


def test_the_same_generator_draws_the_same():
    sampler, user = NegativeSampler(50, 4), torch.arange(20)
    first, again, other = (sampler.draw(user, generator(seed)).item for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("count", [3, 4])
def test_more_negatives_than_the_catalogue_gives_are_refused(count):
    with pytest.raises(RecrayError, match=f"objective.negatives={count}: the catalogue of 3"):
        NegativeSampler(3, count)
