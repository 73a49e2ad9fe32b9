"""A look at one user: what they rated best, what they are recommended, and what was held out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recray.data.dataset import Ratings
from recray.data.ids import RawId
from recray.inference.recommender import Recommender
from recray.inference.scorer import NONE, SOURCES
from recray.schema import SCORE_NAMES


def explain(recommender: Recommender, user: RawId, k: int = 10) -> dict[str, Any]:
    """Put a user's ratings, recommendations and held-out ratings side by side.

    Args:
        recommender: Answers about a bundle.
        user: Raw user id.
        k: Length of the lists of rated and of recommended films.

    Returns:
        {"user", "source", "scores": stars or logits, "model_version", "ratings": how many are
        known, "rated": films with "rating", best first, "recommended": films with "score" and
        "hit", "held_out": films with "rating", "score", "rank" and "hit", by rank, "hits"}.
        A rank counts from 1 among all films that the user has not rated; score and rank are None
        for a film that training does not know. A hit is recommended, held out and relevant.

    Raises:
        KeyError: No split has this user.
        RecrayError: k is out of range.
    """
    bundle = recommender.bundle
    answer = recommender.recommend(user, k)
    dense = recommender.users.encode_one(user)
    known = _of_user(bundle.history, dense)
    held = _held_out(recommender, dense, _of_user(bundle.holdout, dense))
    listed = {film["item"] for film in answer.items}
    bar = bundle.settings.evaluate.relevant_from
    for film in held:
        film["hit"] = film["item"] in listed and (bar is None or film["rating"] >= bar)
    hits = {film["item"] for film in held if film["hit"]}
    recommended = [film | {"hit": film["item"] in hits} for film in answer.items]
    return {
        "user": user,
        "source": answer.source,
        "scores": SCORE_NAMES[bundle.model.score_type],
        "model_version": answer.model_version,
        "ratings": len(known),
        "rated": _best_rated(recommender, known, k),
        "recommended": recommended,
        "held_out": held,
        "hits": len(hits),
    }


def _of_user(ratings: Ratings, user: int) -> Ratings:
    return ratings.where(ratings.user == user)


def _best_rated(recommender: Recommender, known: Ratings, k: int) -> list[dict[str, Any]]:
    order = np.lexsort((known.item, -known.rating))[:k]
    return [
        recommender.describe(int(known.item[row])) | {"rating": float(known.rating[row])}
        for row in order
    ]


def _held_out(recommender: Recommender, user: int, held_out: Ratings) -> list[dict[str, Any]]:
    """Films with rating, score and rank; unknown ones last."""
    score, rank = _scores_and_ranks(recommender, user, held_out.item.astype(np.int64))
    films = [
        recommender.describe(int(item))
        | {
            "rating": float(held_out.rating[row]),
            "score": None if rank[row] == NONE else round(float(score[row]), 6),
            "rank": None if rank[row] == NONE else int(rank[row]),
        }
        for row, item in enumerate(held_out.item)
    ]
    return sorted(films, key=lambda film: film["rank"] or recommender.items.known + 1)


def _scores_and_ranks(
    recommender: Recommender, user: int, item: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(N,) scores of items and (N,) their places in the user's whole list, NONE for unknown."""
    ranker = recommender.ranker
    users = np.array([user])
    state, source = ranker.states(users)
    row = ranker.scores(state, source)[0].numpy()
    order = ranker.rank(users, len(row)).item[0]
    place = np.full(len(row) + 1, NONE, np.int64)
    place[order[order != NONE]] = np.arange(1, (order != NONE).sum() + 1)
    known = np.minimum(item, len(row))
    score = np.append(row, np.nan)[known].astype(np.float32)
    if ranker.model.score_type == "rating" and SOURCES[source[0]] == "popular" and len(item):
        score = ranker.predict(np.full(len(item), user), item)  # not how popular it is
    return score, place[known]
