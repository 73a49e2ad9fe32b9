"""The ratings, the recommendations and the held-out ratings of one user, side by side."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recray.data.dataset import Ratings
from recray.data.ids import RawId
from recray.inference.catalog import ItemFacts
from recray.inference.lookup import RatedItem
from recray.inference.recommendations import ScoredItem
from recray.inference.recommender import Recommender
from recray.inference.scorer import POPULAR
from recray.inference.top_k import NONE
from recray.schema import SCORE_NAMES


@dataclass(frozen=True)
class InspectedItem(ScoredItem):
    """A recommended item; a hit was also held out, and relevant."""

    hit: bool


@dataclass(frozen=True)
class HeldOutItem(RatedItem):
    """A held-out item.

    Args:
        score: None for an item that training does not know.
        rank: Place from 1 among all items that the user has not rated; None as score.
        hit: Whether it was recommended and is relevant.
    """

    score: float | None
    rank: int | None
    hit: bool


@dataclass(frozen=True)
class UserInspection:
    """What is known of one user's taste, and how well the model meets it.

    Args:
        user: Raw id.
        source: Where the list comes from: model, fold_in or popular.
        scores: What a score is: stars or logits.
        model_version: The bundle's version.
        ratings: Number of known ratings.
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
    recommended: list[InspectedItem]
    held_out: list[HeldOutItem]
    hits: int


@dataclass(frozen=True)
class SimilarItems:
    """An item and those most like it, by the cosine of the model's vectors, most alike first."""

    item: ItemFacts
    items: list[ScoredItem]
    source: str
    model_version: str


def inspect_user(recommender: Recommender, user: RawId, k: int = 10) -> UserInspection:
    """Put a user's ratings, recommendations and held-out ratings side by side.

    Args:
        recommender: Answers about a bundle.
        user: Raw user id.
        k: Length of the lists of rated and of recommended items.

    Raises:
        KeyError: No split has this user.
        RecrayError: k is out of range.
    """
    bundle = recommender.bundle
    answer = recommender.recommend(user, k)
    dense = recommender.users.encode_one(user)
    known = bundle.history.where(bundle.history.user == dense)
    test = bundle.holdout.where(bundle.holdout.user == dense)
    held_out = _held_out(recommender, dense, test, {item.item for item in answer.items})
    hits = {item.item for item in held_out if item.hit}
    recommended = [
        InspectedItem(
            *recommender.catalog.fields(item), score, recommender.catalog.raw[item] in hits
        )
        for item, score in zip(answer.item, answer.score, strict=True)
    ]
    return UserInspection(
        user,
        answer.source,
        SCORE_NAMES[bundle.model.score_type],
        answer.model_version,
        len(known),
        recommender.best_rated(known.item, known.rating, k),
        recommended,
        held_out,
        len(hits),
    )


def _held_out(
    recommender: Recommender, user: int, test: Ratings, recommended: set[RawId]
) -> list[HeldOutItem]:
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
                fields[0] in recommended and (relevant_from is None or rating >= relevant_from),
            )
        )
    return sorted(items, key=lambda item: item.rank or recommender.items.known + 1)


def _scores_and_ranks(
    recommender: Recommender, user: int, item: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(N,) scores of items and (N,) their places in the user's whole list, NONE for unknown."""
    scorer = recommender.scorer
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
    return score, place[known]
