"""Whether stars count: liked and disliked films in lists, dislikes folded in, and first ratings."""

# Shape letters: U = users, R = held-out ratings, K = length of a list.

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recray.benchmarks.experiments import (
    RANDOM_80,
    Lab,
    difference_figures,
    mean_of,
    paired,
    rounded,
    tables_of,
)
from recray.benchmarks.harness import Figures, Row
from recray.config import EvaluateSettings
from recray.data.ids import RawId
from recray.evaluation.beyond_accuracy import coverage
from recray.evaluation.evaluator import Evaluator
from recray.evaluation.metrics import PerUserMetrics, RankedBatch, rank_block
from recray.evaluation.protocol import Protocol
from recray.inference.bundle import Bundle
from recray.inference.raw_ratings import RawRating
from recray.inference.recommender import Recommender

LIKED, DISLIKED = 4.0, 2.0
"""Lowest rating of a liked film, and highest of a disliked one, in stars."""
NDCG = "ndcg@10"
PREFERENCES = ("graded", "binary")
GENRES = ("Horror", "Musical")
RANKERS = ("ranking", "hybrid", "neumf-ranking", "softmax-dnn-ranking")
DISLIKED_FILMS = 10
WELL_KNOWN = 30
"""Films of a genre, the most rated ones, of which a visitor dislikes some."""
VISITORS = 20


class Taste(Row):
    """Lists of one preference: liked films, all films, and disliked ones among the hits."""

    figure: str
    preference: str
    runs: int
    liked_ndcg: float
    all_ndcg: float
    disliked_hits: float
    coverage: float


class GenreShown(Row):
    """Films of a genre in the top 10 of visitors who rated ten of it with 1 star, and with 5."""

    figure: str
    preset: str
    genre: str
    at_1_star: float
    at_5_stars: float
    share_of_popularity: float


class FirstRatings(Row):
    """Held-out users of whom a few ratings are known, beside the baselines."""

    figure: str
    known: int
    runs: int
    value: float
    popularity: float
    item_knn: float
    against_popularity: str
    against_item_knn: str


# -------------------------------------------------------------- liked and disliked films in lists


def ratings_of_hits(lists: RankedBatch) -> NDArray[np.float32]:
    """(R,) the ratings of those held-out items, of all users, that are in their lists."""
    step = np.int64(1 << 32)
    listed = np.arange(len(lists.users))[:, None] * step + lists.ranked.item
    found: NDArray[np.float32] = lists.rating[np.isin(lists.place * step + lists.item, listed)]
    return found


def disliked_share(ratings: NDArray[np.float32]) -> float:
    """The share of (R,) hits that were disliked; nan without any hit."""
    return float((ratings <= DISLIKED).mean()) if len(ratings) else float("nan")


def stars_in_lists(lab: Lab) -> tuple[Figures, Sequence[Row]]:
    """Graded preference against binary: liked films, all films, disliked hits, and coverage."""
    liked: dict[str, list[PerUserMetrics]] = {}
    every: dict[str, list[PerUserMetrics]] = {}
    rows = []
    for preference in PREFERENCES:
        settings = (*RANDOM_80, f"objective.preference={preference}")
        bundles = lab.bundles(f"taste-{preference}", "ml-100k", "ranking", settings)
        liked[preference] = [tables_of(bundle, LIKED)["model"] for bundle in bundles]
        every[preference] = [tables_of(bundle)["model"] for bundle in bundles]
        disliked = [disliked_share(_ratings_of_hits(bundle)) for bundle in bundles]
        shown = [coverage(table.shown[0]) for table in every[preference]]
        rows.append(
            Taste(
                figure="liked_ndcg10_100k",
                preference=preference,
                runs=len(bundles),
                liked_ndcg=mean_of(liked[preference], NDCG),
                all_ndcg=mean_of(every[preference], NDCG),
                disliked_hits=rounded(np.mean(disliked)),
                coverage=rounded(np.mean(shown)),
            )
        )
    figures: Figures = {}
    for row, end in zip(rows, ("", "_binary"), strict=True):
        figures[f"liked_ndcg10_100k{end}"] = row.liked_ndcg
        figures[f"all_ndcg10_100k{end}"] = row.all_ndcg
        figures[f"disliked_hits_100k{end}"] = row.disliked_hits
        figures[f"coverage10_100k{end}"] = row.coverage
    for name, tables in (("liked", liked), ("all", every)):
        over = paired(tables["graded"], tables["binary"], NDCG)
        figures |= difference_figures(f"{name}_ndcg10_100k_over_binary", over)
    return figures, rows


def _ratings_of_hits(bundle: Bundle) -> NDArray[np.float32]:
    settings = EvaluateSettings(k=(10,))
    evaluator = Evaluator(bundle, settings, protocol=Protocol(baselines=("popularity",)))
    lists = [
        rank_block(evaluator.scorers["model"], evaluator.targets, users, settings)
        for users in evaluator.blocks
    ]
    return np.concatenate([ratings_of_hits(each) for each in lists])


# ------------------------------------------------------------------------- a genre is disliked


def visitors_of(
    genres: Sequence[Sequence[str]], popularity: NDArray[np.floating], genre: str, visitors: int
) -> list[NDArray[np.int64]]:
    """What each of some visitors has rated: items of a genre, drawn from its most rated ones.

    Args:
        genres: Of each item.
        popularity: (I,) ratings of each item.
        genre: Whose items are rated.
        visitors: How many.
    """
    inside = np.array([n for n, names in enumerate(genres) if genre in names])
    known = inside[np.argsort(-popularity[inside], kind="stable")][:WELL_KNOWN]
    count = min(DISLIKED_FILMS, len(known))
    return [
        np.sort(np.random.default_rng(seed).choice(known, count, replace=False))
        for seed in range(visitors)
    ]


def genre_shown(
    recommender: Recommender, genre: str, stars: float, visitors: Sequence[NDArray[np.int64]]
) -> float:
    """Mean number of films of a genre in the top 10 of visitors who rated films with these stars.

    Args:
        recommender: Folds the visitors in.
        genre: What is counted.
        stars: The rating that all of their films get.
        visitors: The dense items of each.
    """
    raw: list[RawId] = recommender.items.raw.tolist()
    rated = [[RawRating(raw[n], stars) for n in items] for items in visitors]
    lists = recommender.recommend_many(rated, 10)
    counts = [
        sum(genre in item.genres for item in answer.items)
        for answer in lists
        if not isinstance(answer, Exception)
    ]
    return float(np.mean(counts))


def popularity_share(
    genres: Sequence[Sequence[str]], popularity: NDArray[np.floating], genre: str
) -> float:
    """The share of all ratings that items of a genre have; (I,) ratings of each item."""
    inside = np.array([genre in names for names in genres])
    return float(popularity[inside].sum() / popularity.sum())


def disliked_genres(lab: Lab) -> tuple[Figures, Sequence[Row]]:
    """Fold in visitors who dislike ten films of a genre, and count what of it they are shown."""
    rows = []
    for preset in RANKERS[:1] if lab.quick else RANKERS:
        (bundle,) = lab.bundles(f"genre-{preset}", "ml-100k", preset, (), most=1)
        recommender = Recommender(bundle)
        known = recommender.items.known
        genres = [recommender.catalog.genres.of(item) for item in range(known)]
        popularity = recommender.scorer.popularity.numpy()[:known]
        for genre in GENRES:
            visitors = visitors_of(genres, popularity, genre, VISITORS)
            at = {stars: genre_shown(recommender, genre, stars, visitors) for stars in (1.0, 5.0)}
            rows.append(
                GenreShown(
                    figure="disliked_genre_shown",
                    preset=preset,
                    genre=genre,
                    at_1_star=rounded(at[1.0]),
                    at_5_stars=rounded(at[5.0]),
                    share_of_popularity=rounded(popularity_share(genres, popularity, genre)),
                )
            )
    share = np.mean([row.share_of_popularity for row in rows])
    return {
        "disliked_genre_shown": rounded(np.mean([row.at_1_star for row in rows])),
        "disliked_genre_shown_at_5_stars": rounded(np.mean([row.at_5_stars for row in rows])),
        "disliked_genre_shown_popularity": rounded(10 * share),
    }, rows


# ------------------------------------------------------------------------------ the first ratings


def first_ratings(lab: Lab, known: int) -> tuple[Figures, Sequence[Row]]:
    """Fold in held-out users by so many ratings, beside popularity and item-kNN."""
    split = ("split.kind=held-out-users", f"split.fold_in={known}")
    bundles = lab.bundles(f"fold-in-{known}", "ml-100k", "ranking", split, refit=False)
    beside = ("popularity", "item-knn")
    tables = [tables_of(bundle, None, beside) for bundle in bundles]
    by_name = {name: [table[name] for table in tables] for name in ("model", *beside)}
    value = {name: mean_of(each, NDCG) for name, each in by_name.items()}
    over = {name: paired(by_name["model"], by_name[name], NDCG) for name in beside}
    figure = f"fold_in_{known}"
    figures: Figures = {
        figure: value["model"],
        f"{figure}_popularity": value["popularity"],
        f"{figure}_item_knn": value["item-knn"],
    }
    figures |= difference_figures(f"{figure}_over_popularity", over["popularity"])
    figures |= difference_figures(f"{figure}_over_item_knn", over["item-knn"])
    row = FirstRatings(
        figure=figure,
        known=known,
        runs=len(bundles),
        value=value["model"],
        popularity=value["popularity"],
        item_knn=value["item-knn"],
        against_popularity=over["popularity"].words("popularity"),
        against_item_knn=over["item-knn"].words("item-knn"),
    )
    return figures, [row]
