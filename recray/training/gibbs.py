"""Epochs of Gibbs sampling for BPMF: the model becomes the mean of what the samples predict."""

# Shape letters: R = rows, N = ratings, D = length of a sampled row, S = length of a user state.

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from recray.models.factorization import BPMFMean
from recray.models.objectives import BPMF
from recray.models.objectives.normal_equations import Equations, GroupedRows
from recray.training.divided_items import DividedItems
from recray.training.epochs import EpochRunner
from recray.training.gibbs_math import (
    Draws,
    RatedRows,
    RowPrior,
    draw_noise,
    draw_rows,
    implicit_svd_features,
    normal,
    truncated_svd,
    with_zeros,
)
from recray.training.shard import Shard, Workers

PRIOR_STEPS = 2
"""Steps of expectation maximisation for the spread of users around their prior."""
PAIR_BLOCK = 1 << 16
"""Pairs that are predicted at once."""


class GibbsSampler(EpochRunner):
    """Draws all users given the items, then all items given the users; averages the predictions.

    A sample has a row for each user and item: vector, then bias. A worker has and draws the rows of
    its own users, and draws a share of the items, whose normal equations are summed. Samples are in
    units of the ratings' standard deviation. It runs on the CPU alone: random numbers are numpy's.

    Args:
        model: Its users are this worker's; all else is equal on every worker.
        objective: Sizes of the samples, and how many.
        shard: This worker's rows.
        seed: Decides, with the epoch's number, every draw.
        workers: The group.
    """

    def __init__(
        self, model: BPMFMean, objective: BPMF, shard: Shard, seed: int, workers: Workers
    ) -> None:
        self.model, self.objective, self.shard = model, objective, shard
        self.seed, self.workers = seed, workers
        own, items, dim = shard.users, model.items, objective.factors + 1
        user_begins = torch.searchsorted(shard.user, torch.arange(len(own) + 1))
        self.user_counts = user_begins.diff().double()
        numbers, table = torch.arange(shard.rows), (shard.rows, dim)
        grouped = GroupedRows.of(user_begins, numbers, *table)
        self.by_user = RatedRows(grouped, shard.item, items)
        self.item_order = torch.argsort(shard.item, stable=True)
        item_begins = torch.searchsorted(shard.item[self.item_order], torch.arange(items + 1))
        self.item_users = shard.user[self.item_order]
        self.divided = None
        if workers.size > 1:
            counts = workers.sum(item_begins.diff())
            self.divided = DividedItems.of(item_begins, numbers, table, None, counts, workers)
            grouped = self.divided.known
        else:
            grouped = GroupedRows.of(item_begins, numbers, *table)
        self.by_item = RatedRows(grouped, self.item_users, len(own))
        stars = shard.rating.double()
        moments = float(len(stars)), float(stars.sum()), float(stars.square().sum())
        number, total, squares = workers.sum_floats(*moments)
        self.unit = max(squares / number - (total / number) ** 2, 1e-12) ** 0.5
        user_features, item_features, self.taste_table = implicit_svd_features(
            shard.user, shard.item, own, items, objective.side_rank, workers
        )
        self.user_prior = RowPrior(_with_constant(user_features), dim, workers)
        self.item_prior = RowPrior(_with_constant(item_features), dim)
        first, dtype = Draws(seed, -1, own), model.mean.dtype
        self.user_rows = (0.1 * first.normal(dim)).to(dtype)
        self.item_rows = (0.1 * normal(first.shared, items, dim)).to(dtype)
        self.weight = torch.ones(len(own), dtype=torch.float64)
        self.typical, self.samples = 1.0, 0

    @torch.no_grad()
    def run(self, epoch: int) -> tuple[float, float]:
        """Draw and average one epoch's samples; return this worker's squared error and rows."""
        self.model.eval()
        draws = Draws(self.seed, epoch, self.shard.users)
        target = (self.shard.rating.to(self.model.mean.dtype) - self.model.mean) / self.unit
        if epoch <= self.objective.burn_in:
            self.samples = 0  # the samples of the burn-in are forgotten
        for _ in range(self.objective.samples_per_epoch):
            self._draw_users(target, draws)
            self._draw_items(target, draws.shared)
            self._draw_noise(target, draws)
            self._average()
        loss = self._squared_error()
        error, rows = self.workers.sum_floats(loss, float(len(target)))
        self.model.noise.fill_(max(error / rows, 1e-6))
        self._learn_prior()
        return loss, float(len(target))

    def _draw_users(self, target: Tensor, draws: Draws) -> None:
        self.user_prior.draw(self.user_rows, draws.shared)
        noise, table = draws.normal(self.user_rows.shape[1]), with_zeros(_vectors(self.item_rows))
        known = self.by_user.drawn_with(target - self.item_rows[self.shard.item, -1])
        for group in known.groups:
            rows, (matrix, right) = known.members(group), known.equations(group, table)
            weight = self.weight[rows].to(table.dtype)
            given = Equations(matrix * weight[:, None, None], right * weight[:, None])
            self.user_rows[rows] = self._draw(given, rows, self.user_prior, noise)

    def _draw_items(self, target: Tensor, rng: np.random.Generator) -> None:
        self.item_prior.draw(self.item_rows, rng)
        noise, table = normal(rng, *self.item_rows.shape), with_zeros(_vectors(self.user_rows))
        residual = target[self.item_order] - self.user_rows[self.item_users, -1]
        weight = self.weight.to(target.dtype)[self.item_users]
        known = self.by_item.drawn_with(residual, weight)

        def drawn(given: Equations, rows: Tensor) -> Tensor:
            return self._draw(given, rows, self.item_prior, noise)

        if self.divided is not None:
            self.item_rows = replace(self.divided, known=known).each(table, drawn)
            return
        for group in known.groups:
            rows = known.members(group)
            self.item_rows[rows] = drawn(known.equations(group, table), rows)

    def _draw(self, given: Equations, rows: Tensor, prior: RowPrior, noise: Tensor) -> Tensor:
        mean = prior.features[rows] @ prior.weights
        kind = given.right.dtype
        return draw_rows(given, mean.to(kind), prior.precision.to(kind), noise[rows].to(kind))

    def _draw_noise(self, target: Tensor, draws: Draws) -> None:
        squares = torch.zeros(len(self.user_rows), dtype=torch.float64)
        vectors, bias = _vectors(self.item_rows), self.item_rows[:, -1]
        for place in torch.arange(len(target)).split(PAIR_BLOCK):
            user = self.shard.user[place]
            item = self.shard.item[place]
            guess = (self.user_rows[user] * vectors[item]).sum(dim=-1) + bias[item]
            squares.index_add_(0, user, (target[place] - guess).double().square())
        given = squares, self.user_counts, self.typical
        self.weight, self.typical = draw_noise(*given, draws, self.workers)

    def _average(self) -> None:
        """Take the newest sample into the running mean of the predictions."""
        self.samples += 1
        model, share = self.model, 1 / self.samples
        users, items = self.user_rows * self.unit, self.item_rows
        model.user_bias.weight.lerp_(users[:, -1:], share)
        model.item_bias.weight.lerp_(items[:, -1:] * self.unit, share)
        # The mean of products is a product of longer rows, side by side: (1 - s) A B' + s C D'
        # = [sqrt(1 - s) A, sqrt(s) C] [sqrt(1 - s) B, sqrt(s) D]'. It is cut to the model's length.
        old, new = (1 - share) ** 0.5, share**0.5
        left, right = truncated_svd(
            torch.cat([old * model.user_vectors.weight, new * users[:, :-1]], dim=1),
            torch.cat([old * model.item_vectors.weight, new * items[:, :-1]], dim=1),
            model.user_vectors.embedding_dim,
            self.workers,
        )
        model.user_vectors.weight.copy_(left)
        model.item_vectors.weight.copy_(right)

    def _squared_error(self) -> float:
        seen, error = self.shard, torch.zeros((), dtype=torch.float64)
        columns = (column.split(PAIR_BLOCK) for column in (seen.user, seen.item, seen.rating))
        for user, item, rating in zip(*columns, strict=True):
            error += (rating - self.model(user, item)).double().square().sum()
        return float(error)

    def _learn_prior(self) -> None:
        """Learn the prior of a new user: regress the states of the trained users on their features,
        and find the spread around that by a few steps of expectation maximisation, the items fixed.
        """
        model, features, add = self.model, self.user_prior.features, self.workers.sum
        states = model.user_state(torch.arange(model.users)).double()
        ridge = torch.full((features.shape[1],), float(self.user_prior.shrink)).double()
        ridge[0] = 1e-6
        matrix = self.user_prior.gram + torch.diag(ridge)
        weights = torch.linalg.solve(matrix, add(features.T @ states))
        means = features @ weights
        spread = add((states - means).T @ (states - means)) / self.shard.users.total
        for _ in range(PRIOR_STEPS):
            spread = self._expected_spread(means, _inverse(spread))
        model.prior_mean.copy_(weights[0])
        model.taste_rows.copy_(self.taste_table @ weights[1:])
        model.prior_precision.copy_(_inverse(spread))

    def _expected_spread(self, means: Tensor, precision: Tensor) -> Tensor:
        """Average (state - mean) (state - mean)', (S, S), under each user's posterior."""
        model, size, whole = self.model, means.shape[1], slice(None)
        table = with_zeros(model.item_rows(whole).double())
        offset = model.item_offset(whole).double()[self.shard.item]
        known = self.by_user.drawn_with(self.shard.rating.double() - offset)
        total = means.new_zeros(size, size)
        for group in known.groups:
            mean, (matrix, right) = means[known.members(group)], known.equations(group, table)
            inverse = torch.linalg.inv(matrix / float(model.noise) + precision)
            middle = right / float(model.noise) + mean @ precision
            away = (inverse @ middle[:, :, None])[:, :, 0] - mean
            total += inverse.sum(dim=0) + away.T @ away
        return self.workers.sum(total) / self.shard.users.total

    def state(self) -> dict[str, Tensor]:
        """The newest sample of what is shared, and how many the mean in the model covers."""
        return {
            "item_rows": self.item_rows,
            "user_shrink": self.user_prior.shrink,
            "item_shrink": self.item_prior.shrink,
            "typical": torch.tensor(self.typical, dtype=torch.float64),
            "samples": torch.tensor(self.samples),
        }

    def user_state(self) -> dict[str, Tensor]:
        """The newest sample of own users: their rows, and the weights of their ratings."""
        return {"user_rows": self.user_rows, "weight": self.weight}

    def load_state(self, shared: dict[str, Tensor], user_rows: dict[str, Tensor]) -> None:
        """Go on from the sample of `state` and `user_state`."""
        self.user_rows, self.item_rows = user_rows["user_rows"].clone(), shared["item_rows"].clone()
        self.user_prior.shrink = shared["user_shrink"]
        self.item_prior.shrink = shared["item_shrink"]
        self.weight = user_rows["weight"].clone()
        self.typical, self.samples = float(shared["typical"]), int(shared["samples"])


def _with_constant(features: Tensor) -> Tensor:
    """Put the constant before (R, K) features."""
    return torch.cat([torch.ones_like(features[:, :1]), features], dim=1)


def _vectors(rows: Tensor) -> Tensor:
    """What multiplies a row of the other side: (R, D) rows with 1 in place of the bias, which the
    other side's own bias meets.
    """
    return torch.cat([rows[:, :-1], torch.ones_like(rows[:, :1])], dim=1)


def _inverse(spread: Tensor) -> Tensor:
    """Invert a covariance, also where some directions have no spread."""
    inverse: Tensor = torch.linalg.inv(spread + 1e-6 * torch.eye(len(spread), dtype=spread.dtype))
    return inverse
