"""Choose on validation rows how strongly fold-in pulls to the mean of the trained users.

A user with validation rows is treated as new: 1, 2, 3, 5, 10 and 20 of their known ratings are
folded in, and the list is measured on their validation rows.
"""

# Shape letters: U = users, I = items, R = ratings, K = length of a list.

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.config import EvaluateSettings, Settings
from recray.data.dataset import Prepared, Ratings
from recray.data.split import hash_ids
from recray.evaluation.metrics import ndcg
from recray.inference.bundle_writer import TrainedModel
from recray.inference.history import History
from recray.inference.queries import FOLD_IN, Queries
from recray.inference.scorer import Scorer
from recray.inference.top_k import NONE
from recray.models import build_model
from recray.models.base import Model
from recray.models.objectives import FoldIn, FoldInConfig, Objective, build_objective

KNOWN = (1, 2, 3, 5, 10, 20)
"""Numbers of known ratings that are simulated; each counts the same."""
SAMPLE_USERS = 500
MAX_CELLS = 1 << 25
"""Users times items of the sample, so that a large catalogue takes seconds, too."""


@dataclass(frozen=True)
class NewUsers:
    """Users who are treated as new.

    Args:
        known: Each user's known ratings in an order that a hash decides, as U rows.
        relevant: (U, I) bool; the validation rows that a list should show.
        allowed: (U, I) bool; the items that are no known rating.
    """

    known: History
    relevant: NDArray[np.bool_]
    allowed: Tensor

    @classmethod
    def of(
        cls, known: Ratings, valid: Ratings, items: int, settings: EvaluateSettings
    ) -> "NewUsers":
        """Take a sample, by a hash, of the users with known ratings and relevant validation rows.

        Args:
            known: What the users have rated beside the validation rows.
            valid: Validation rows.
            items: Items that the model knows; rows of others are left out.
            settings: The least rating that is relevant.
        """
        known, valid = (rows.where(rows.item < items) for rows in (known, valid))
        if settings.relevant_from is not None:
            valid = valid.where(valid.rating >= settings.relevant_from)
        users = np.intersect1d(known.user, valid.user).astype(np.int64)
        sample = min(SAMPLE_USERS, max(MAX_CELLS // max(items, 1), 1))
        users = np.sort(users[np.argsort(hash_ids(0, users), kind="stable")[:sample]])
        known, valid = (rows.where(np.isin(rows.user, users)) for rows in (known, valid))
        ids = known.user.astype(np.int64), known.item.astype(np.int64)
        known = known.where(np.lexsort((hash_ids(0, *ids), known.user)))
        row = np.searchsorted(users, known.user)
        indptr = np.append(0, np.bincount(row, minlength=len(users)).cumsum()).astype(np.int64)
        allowed = torch.ones(len(users), items, dtype=torch.bool)
        allowed[torch.from_numpy(row), torch.from_numpy(known.item).long()] = False
        relevant = np.zeros((len(users), items), np.bool_)
        relevant[np.searchsorted(users, valid.user), valid.item] = True
        return cls(History(indptr, known.item, known.rating), relevant, allowed)

    def with_ratings(self, count: int) -> tuple[NDArray[np.int64], History]:
        """The places of the users who have so many ratings, and their first ones."""
        begin = self.known.indptr[:-1]
        who = np.flatnonzero(np.diff(self.known.indptr) >= count)
        rows = (begin[who][:, None] + np.arange(count)).ravel()
        indptr = np.arange(len(who) + 1, dtype=np.int64) * count
        return who, History(indptr, self.known.item[rows], self.known.rating[rows])

    def quality(self, scorer: Scorer, fold_in: FoldIn, k: int) -> dict[int, NDArray[np.float64]]:
        """For each number of known ratings the NDCG@k of every user who has so many."""
        found = {}
        for count in KNOWN:
            who, rated = self.with_ratings(count)
            if not len(who):
                continue
            source = np.full(len(who), FOLD_IN, np.int8)
            queries = Queries(
                fold_in(rated.as_csr()), source, partial(rated.rows, 0, len(who)), rated
            )
            item = scorer.top_k(queries, k, False, self.allowed[torch.from_numpy(who)]).item
            relevant = self.relevant[who]
            hits = np.take_along_axis(relevant, np.maximum(item, 0), axis=1) & (item != NONE)
            found[count] = ndcg(hits, relevant.sum(axis=1), item.shape[1])
        return found


def choose_fold_in(prepared: Prepared, trained: TrainedModel, settings: Settings) -> TrainedModel:
    """The trained model with the strength of the prior that its validation rows favour.

    It is the one with the highest NDCG, averaged over the users with so many known ratings, then
    over KNOWN. Without validation rows, or where training has seen them, it is the objective's
    default.

    Args:
        prepared: The data set that it was trained on.
        trained: What it has learned from the training rows.
        settings: The resolved settings.
    """
    fit = prepared.fit(settings.train.fit_on)
    objective = build_objective(settings, *fit.rating_range)
    if not objective.prior_strengths:
        return trained
    if settings.train.fit_on != "train":  # validation rows that were trained on cannot tell
        return replace(trained, prior_strength=objective.default_prior_strength)
    train, valid = prepared.load("train"), prepared.load("valid")
    known = Ratings.concatenate([train, prepared.load("fold_in")])
    model = build_model(settings, fit.users, fit.items)
    model.load_state_dict(trained.weights)
    users = NewUsers.of(known, valid, model.items, settings.evaluate)
    popularity = torch.from_numpy(np.bincount(train.item, minlength=model.items)).float()
    strength = best_strength(model, objective, users, settings, popularity)
    return replace(trained, prior_strength=strength)


@torch.no_grad()
def best_strength(
    model: Model,
    objective: Objective,
    users: NewUsers,
    settings: Settings,
    popularity: Tensor | None = None,
) -> float:
    """The strength of the prior with the best lists for users who are treated as new.

    Args:
        model: A trained model.
        objective: What it was trained with.
        users: Those who are treated as new.
        settings: Lengths of lists.
        popularity: (I,) training ratings of each item; None counts those of `users`.
    """
    scorer = Scorer(model, objective, users.known, popularity=popularity)
    k = min(settings.evaluate.k[0], model.items)
    best, best_value = objective.default_prior_strength, -1.0
    for strength in reversed(objective.prior_strengths):
        config = FoldInConfig(prior_strength=strength)
        fold_in = objective.fold_in_solver(model, config, scorer.popularity)
        by_count = users.quality(scorer, fold_in, k).values()
        value = float(np.mean([each.mean() for each in by_count])) if by_count else -1.0
        if value > best_value:
            best, best_value = strength, value
    return best
