"""The ratings, the recommendations and the held-out ratings of one user, side by side."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recray.data.dataset import Ratings
from recray.data.ids import RawId
from recray.inference.catalog import ItemFacts
from recray.inference.lookup import RatedItem
from recray.inference.queries import POPULAR
from recray.inference.recommendations import ScoredItem
from recray.inference.recommender import Recommender
from recray.inference.top_k import NONE
from recray.schema import SCORE_NAMES


@dataclass(frozen=True)
class HeldOutItem(RatedItem):
    """A held-out item.

    Args:
        score: None for an item that training does not know.
        rank: Place from 1 in the list that a measurement ranks, which leaves out all ratings but
            the held-out ones; None as score.
        hit: Whether it is among the first k of that list and relevant.
    """

    score: float | None
    rank: int | None
    hit: bool


@dataclass(frozen=True)
class ListedItem(ScoredItem):
    """An item of the list.

    Args:
        hit: False for each: the list leaves out the held-out items with all that is known.
    """

    hit: bool = False


@dataclass(frozen=True)
class UserInspection:
    """What is known of one user's taste, and how well the model meets it.

    Args:
        user: Raw id.
        source: Where the list comes from: model, fold_in or popular.
        scores: What a score is: stars or logits.
        model_version: The bundle's version.
        ratings: Number of known ratings, the held-out ones included.
        rated: The items with the best known ratings, best first.
        recommended: The list, best first.
        held_out: By rank; items without a rank come last.
        hits: Number of hits.
    """

    user: RawId
    source: str
    scores: str
    model_version: str
    ratings: int
    rated: list[RatedItem]
    recommended: list[ListedItem]
    held_out: list[HeldOutItem]
    hits: int


@dataclass(frozen=True)
class SimilarItems:
    """An item and those most like it, by the cosine of the model's vectors, most alike first."""

    item: ItemFacts
    items: list[ScoredItem]
    source: str
    model_version: str


def inspect_user(recommender: Recommender, user: RawId, k: int | None = None) -> UserInspection:
    """Put a user's ratings, recommendations and held-out ratings side by side.

    Args:
        recommender: Answers about a bundle.
        user: Raw user id.
        k: Length of the lists of rated and of recommended items; a held-out item among the
            first k is a hit.

    Raises:
        KeyError: No split has this user.
        RecrayError: k is out of range.
    """
    bundle = recommender.bundle
    k = recommender.check_k(k)
    answer = recommender.recommend(user, k)
    dense = recommender.users.encode_one(user)
    interactions = bundle.interactions
    known, test = (
        rows.where(rows.user == dense) for rows in (interactions.known, interactions.withheld)
    )
    held_out = _held_out(recommender, dense, test, k)
    return UserInspection(
        user,
        answer.source,
        SCORE_NAMES[bundle.model.score_type],
        answer.model_version,
        len(known),
        recommender.best_rated(known.item, known.rating, k),
        [ListedItem(**vars(item)) for item in answer.items],
        held_out,
        sum(item.hit for item in held_out),
    )


def _held_out(recommender: Recommender, user: int, test: Ratings, k: int) -> list[HeldOutItem]:
    """Held-out items by rank; those that training does not know last."""
    relevant_from = recommender.bundle.settings.evaluate.relevant_from
    score, rank = _scores_and_ranks(recommender, user, test.item.astype(np.int64))
    items = []
    for row, item in enumerate(test.item.tolist()):
        fields, rating = recommender.catalog.fields(item), float(test.rating[row])
        unknown = rank[row] == NONE
        items.append(
            HeldOutItem(
                *fields,
                rating,
                None if unknown else round(float(score[row]), 6),
                None if unknown else int(rank[row]),
                not unknown
                and bool(rank[row] <= k)
                and (relevant_from is None or rating >= relevant_from),
            )
        )
    return sorted(items, key=lambda item: item.rank or recommender.items.known + 1)


def _scores_and_ranks(
    recommender: Recommender, user: int, item: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(N,) scores of items and (N,) their places in the user's whole list, NONE for unknown."""
    scorer = recommender.measuring_scorer
    queries = scorer.queries(np.array([user]))
    row = scorer.scores(queries)[0].numpy()
    order = scorer.top_k(queries, len(row)).item[0]
    place = np.full(len(row) + 1, NONE, np.int64)
    place[order[order != NONE]] = np.arange(1, (order != NONE).sum() + 1)
    known = np.minimum(item, len(row))
    score = np.append(row, np.nan)[known].astype(np.float32)
    if scorer.model.score_type == "rating" and queries.source[0] == POPULAR and len(item):
        # The score of such a list is the popularity; as a rating the prediction says more.
        score = scorer.predict(np.full(len(item), user), item)
    return scorer.within_scale(score), place[known]
