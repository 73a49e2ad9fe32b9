"""Objectives that rank rated items above others, against sampled negatives or all items.

With sampled negatives a row is a rating with its K negatives; with all items a row is a user with
all of the user's ratings. Target p and weight w of a rating, from the preference, mix two losses,
w * (p * like + (1 - p) * dislike): the first is small where the rated item scores high, the second
where it scores low. Both p and w are 1 where the preference is binary.
"""

# Shape letters: B = pairs in the batch, K = negatives of a pair, U = users, I = items,
# R = ratings of those users.

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from recray.data.negatives import Negatives, sampling_probabilities
from recray.errors import RecrayError
from recray.models.base import ITEM_BLOCK, Model
from recray.models.batches import Batch
from recray.models.history import RatingsCSR
from recray.models.objectives.base import PairLoss, require_raw_output
from recray.models.objectives.fold_in import (
    FoldIn,
    FoldInConfig,
    FoldInPrior,
    fold_in_by_lbfgs,
)
from recray.models.objectives.preference import BINARY, Graded, Preference
from recray.models.objectives.rating import as_classifier

LOWEST = -1e4
"""Stands for the log of a sum without terms."""


def negatives_of(batch: Batch) -> Negatives:
    """The negatives of a batch.

    Raises:
        ValueError: None were drawn, a caller's mistake.
    """
    if batch.negatives is None:
        raise ValueError("this objective needs negatives")
    return batch.negatives


class SamplingObjective(PairLoss):
    """An objective that compares a rated item with others, which are drawn or all items.

    Args:
        l2: Weight of the squared rows of each pair.
        negatives: Items drawn for each rating; None takes all items.
        by_popularity: Whether they are drawn by popularity.
    """

    def __init__(self, l2: float, negatives: int | None, by_popularity: bool) -> None:
        super().__init__(l2)
        self.negatives, self.by_popularity = negatives, by_popularity

    def share(self, items: int, popularity: Tensor | None) -> Tensor:
        """(items,) probability that each item is drawn as a negative."""
        return sampling_probabilities(items, popularity if self.by_popularity else None).float()


class SampledLoss(SamplingObjective):
    """A loss of the score of a rated item against the scores of others.

    Args:
        l2: Weight of the squared rows of each pair.
        negatives: Items drawn for each rating; None takes all items.
        by_popularity: Whether they are drawn by popularity.
        preference: What a rating says of liking.
    """

    kind: str

    def __init__(
        self,
        l2: float,
        negatives: int | None,
        by_popularity: bool,
        preference: Preference = BINARY,
    ) -> None:
        super().__init__(l2, negatives, by_popularity)
        self.preference = preference

    def check(self, model: Model) -> None:
        """Refuse a model with a sigmoid output."""
        require_raw_output(model, self.kind)

    @abstractmethod
    def sampled_loss(
        self,
        positive: Tensor,
        negative: Tensor,
        item: Tensor,
        drawn: Negatives,
        graded: Graded | None = None,
    ) -> Tensor:
        """(B,) losses from (B,) scores, (B, K) scores, the (B,) items and their negatives, and
        what the B ratings say; None: each is a like.
        """

    @abstractmethod
    def full_loss(
        self,
        scores: Tensor,
        row: Tensor,
        item: Tensor,
        share: Tensor,
        graded: Graded | None = None,
    ) -> Tensor:
        """(U,) losses of users against all items.

        Args:
            scores: (U, I) raw scores.
            row: (R,) row number of each rating's user.
            item: (R,) rated items.
            share: (I,) probability that each item is drawn as a negative.
            graded: What the R ratings say; None: each is a like.
        """

    def row_loss(self, model: Model, batch: Batch) -> Tensor:
        """(B,) losses in nats."""
        drawn = negatives_of(batch)
        items = torch.cat([batch.item[:, None], drawn.item], dim=1)
        scores = model.logits_grouped(batch.user, items, batch.ids)
        graded = self.preference.graded(batch.rating)
        return self.sampled_loss(scores[:, 0], scores[:, 1:], batch.item, drawn, graded)

    def fold_in_solver(
        self, model: Model, config: FoldInConfig, popularity: Tensor | None
    ) -> FoldIn:
        """L-BFGS on the loss against all items, the expectation of the sampled loss."""
        prior = FoldInPrior.of(model, config.noise)
        share = self.share(model.items, popularity)

        def loss(state: Tensor, known: RatingsCSR) -> Tensor:
            graded = self.preference.graded(known.rating)
            return self.full_loss(all_logits(model, state), known.row, known.item, share, graded)

        return fold_in_by_lbfgs(model, prior, loss)


def all_logits(model: Model, state: Tensor) -> Tensor:
    """(U, I) scores before the activation, computed by blocks of items."""
    edges = range(0, model.items, ITEM_BLOCK)
    blocks = [model.logits_block(state, a, min(a + ITEM_BLOCK, model.items)) for a in edges]
    return torch.cat(blocks, dim=1)


def _sums(values: Tensor, row: Tensor, scores: Tensor) -> Tensor:
    """Sum (R,) values of ratings for each of the (U, I) scores' rows: (U,)."""
    return scores.new_zeros(len(scores)).index_add(0, row, values)


def _mixed(like: Tensor, dislike: Callable[[], Tensor], graded: Graded | None) -> Tensor:
    """(R,) losses w * (p * like + (1 - p) * dislike); like alone where graded is None."""
    if graded is None:
        return like
    loss = graded.target * like + (1 - graded.target) * dislike()
    return loss if graded.weight is None else loss * graded.weight


class Logistic(SampledLoss):
    """-log sigmoid(s+) - sum over negatives of log sigmoid(-s-); a dislike is -log sigmoid(-s+).

    Source: Rendle, Krichene, Zhang and Anderson (2020), RecSys, "Neural collaborative filtering
        vs. matrix factorization revisited".
    """

    kind = "logistic"

    def __init__(
        self,
        l2: float,
        negatives: int | None,
        by_popularity: bool,
        unobserved_weight: float,
        preference: Preference = BINARY,
    ) -> None:
        super().__init__(l2, negatives, by_popularity, preference)
        self.unobserved_weight = unobserved_weight

    def sampled_loss(
        self,
        positive: Tensor,
        negative: Tensor,
        item: Tensor,
        drawn: Negatives,
        graded: Graded | None = None,
    ) -> Tensor:
        """(B,) cross-entropies."""
        others = (functional.softplus(negative) * drawn.weight).sum(dim=-1)
        return _cross_entropy(positive, graded) + others

    def full_loss(
        self,
        scores: Tensor,
        row: Tensor,
        item: Tensor,
        share: Tensor,
        graded: Graded | None = None,
    ) -> Tensor:
        """(U,) cross-entropies; an item weighs unobserved_weight, or how often it is drawn."""
        rated = _sums(_cross_entropy(scores[row, item], graded), row, scores)
        if self.negatives is None:
            return rated + self.unobserved_weight * functional.softplus(scores).sum(dim=1)
        drawn = torch.bincount(row, minlength=len(scores)).float() * self.negatives
        return rated + drawn * (functional.softplus(scores) @ share)


def _cross_entropy(score: Tensor, graded: Graded | None) -> Tensor:
    softplus = functional.softplus
    return _mixed(softplus(-score), lambda: softplus(score), graded)


class Bpr(SampledLoss):
    """Mean over negatives of -log sigmoid(s+ - s-); a dislike is -log sigmoid(s- - s+).

    Source: Rendle et al. (2009), UAI, "BPR: Bayesian personalized ranking".
    """

    kind = "bpr"

    def sampled_loss(
        self,
        positive: Tensor,
        negative: Tensor,
        item: Tensor,
        drawn: Negatives,
        graded: Graded | None = None,
    ) -> Tensor:
        """(B,) losses."""
        ahead, count = positive[:, None] - negative, drawn.weight.sum(dim=-1).clamp(min=1)
        pairs = _mixed(
            (functional.softplus(-ahead) * drawn.weight).sum(dim=-1),
            lambda: (functional.softplus(ahead) * drawn.weight).sum(dim=-1),
            graded,
        )
        return pairs / count

    def full_loss(
        self,
        scores: Tensor,
        row: Tensor,
        item: Tensor,
        share: Tensor,
        graded: Graded | None = None,
    ) -> Tensor:
        """(U,) losses."""
        ahead = scores[row, item][:, None] - scores[row]
        pairs = _mixed(
            functional.softplus(-ahead) @ share, lambda: functional.softplus(ahead) @ share, graded
        )
        return _sums(pairs, row, scores)


class ItemSoftmax(SampledLoss):
    """-log of the softmax over items at the rated one; a dislike is -log sigmoid(m - s+).

    m is the log of the mean of exp(s) over items: a disliked item loses to a random one. The
    softmax alone could only like it less, and -log(1 - softmax) is next to nothing of thousands.

    A sampled softmax subtracts log q, the log of the probability that an item is drawn, from each
    logit: otherwise items that are drawn often would be pushed down too much.

    Source: Yi et al. (2019), RecSys, "Sampling-bias-corrected neural modeling"; against all items
        the multinomial likelihood of Liang et al. (2018), WWW.
    """

    kind = "item-softmax"

    def sampled_loss(
        self,
        positive: Tensor,
        negative: Tensor,
        item: Tensor,
        drawn: Negatives,
        graded: Graded | None = None,
    ) -> Tensor:
        """(B,) cross-entropies over the rated item and its negatives."""
        rated = positive - drawn.log_share[item]
        # A negative of weight 0 stands for no item, and the rated item is in the sum already.
        void = (drawn.weight == 0) | (drawn.item == item[:, None])
        others = (negative - drawn.log_share[drawn.item]).masked_fill(void, -torch.inf)
        own = torch.logsumexp(torch.cat([rated[:, None], others], dim=1), dim=1) - rated

        def dislike() -> Tensor:
            # The mean of exp(s) / (share * items) over draws is that of exp(s) over items.
            count = (~void).sum(dim=1)
            terms = count.clamp(min=1) * drawn.items
            mean = torch.logsumexp(others, dim=1).clamp(min=LOWEST) - terms.log()
            return torch.where(count > 0, functional.softplus(positive - mean), 0)

        return _mixed(own, dislike, graded)

    def full_loss(
        self, scores: Tensor, row: Tensor, item: Tensor, share: Tensor, graded: Graded | None = None
    ) -> Tensor:
        """(U,) cross-entropies over all items."""
        total, rated = torch.logsumexp(scores, dim=1)[row], scores[row, item]
        losses = _mixed(
            total - rated,
            lambda: functional.softplus(rated - total + math.log(scores.shape[1])),
            graded,
        )
        return _sums(losses, row, scores)


class UnobservedClass(SamplingObjective):
    """Cross-entropy of the rating's class, and of the class "not rated" for its negatives."""

    def check(self, model: Model) -> None:
        """Refuse a model without classes, and all items as negatives."""
        as_classifier(model)
        if self.negatives is None:
            raise RecrayError("objective.kind=unobserved-class draws negatives: give a number")

    def row_loss(self, model: Model, batch: Batch) -> Tensor:
        """(B,) cross-entropies in nats."""
        network, drawn = as_classifier(model), negatives_of(batch)
        state, count = network.user_state(batch.user), drawn.item.shape[1]
        classes = network.class_logits(state, batch.item)
        own = functional.cross_entropy(classes, network.class_of(batch.rating), reduction="none")
        others = network.class_logits(state.repeat_interleave(count, dim=0), drawn.item.flatten())
        unobserved = -torch.log_softmax(others, dim=-1)[:, network.unobserved].view(-1, count)
        return own + (unobserved * drawn.weight).sum(dim=-1)

    def fold_in_solver(
        self, model: Model, config: FoldInConfig, popularity: Tensor | None
    ) -> FoldIn:
        """L-BFGS on the cross-entropies, with the expectation over all items for the negatives."""
        network, prior = as_classifier(model), FoldInPrior.of(model, config.noise)
        share = self.share(model.items, popularity)

        def loss(state: Tensor, known: RatingsCSR) -> Tensor:
            classes = network.tower.block(state, network.item_vectors.weight)
            chances = torch.log_softmax(classes, dim=-1)
            own = chances[known.row, known.item, network.class_of(known.rating)]
            unobserved = chances[:, :, network.unobserved] @ share
            return -known.sums(own) - known.indptr.diff() * (self.negatives or 0) * unobserved

        return fold_in_by_lbfgs(network, prior, loss)
