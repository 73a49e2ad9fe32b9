"""The embedded data set: generated, MovieLens-shaped, no network.

About 600 people with tastes by genre rate 1,500 invented films: few films are popular, people pick
what suits them and rate it higher, over twelve years. The same seed gives the same bytes.
"""

import io

import numpy as np

USERS, ITEMS, RATINGS = 600, 1500, 60_000
GENRES = (
    "Action Adventure Animation Comedy Crime Documentary Drama Fantasy Horror Musical Mystery "
    "Romance Sci-Fi Thriller War Western"
).split()
_FIRST = (
    "Silent Golden Broken Hidden Last Crimson Distant Electric Forgotten Gentle Hollow Iron Lonely "
    "Midnight Northern Paper Quiet Restless Scarlet Stolen Sudden Velvet Wandering Winter Burning"
).split()
_SECOND = (
    "River Garden Harbour Letter Mirror Orchard Planet Promise Road Shadow Station Summer Tower "
    "Valley Voyage Window Witness Island Lantern Machine Melody Mountain Ocean Parade Stranger "
    "Carnival Empire Horizon Kingdom Detective"
).split()
_PLACE = [
    "",
    " of Glass",
    " by the Sea",
    " in Winter",
    ", The",
    " at Dawn",
    " Returns",
    " of Tomorrow",
]


def files(seed: int = 0) -> dict[str, bytes]:
    """The data set in MovieLens's csv layout: ratings.csv and movies.csv.

    Args:
        seed: Another seed gives another data set of the same shape.
    """
    rng = np.random.default_rng([seed, 20])
    genre_IG = _film_genres(rng)
    year_I = rng.integers(1950, 2020, ITEMS)
    user_R, item_R, rating_R, time_R = _ratings(rng, genre_IG, year_I)
    return {
        "movies.csv": _movies_csv(rng, genre_IG, year_I),
        "ratings.csv": _ratings_csv(user_R, item_R, rating_R, time_R),
    }


def _film_genres(rng: np.random.Generator) -> np.ndarray:
    genre_IG = np.zeros((ITEMS, len(GENRES)))
    weight = 1 / np.arange(2, len(GENRES) + 2)
    for item in range(ITEMS):
        count = rng.integers(1, 4)
        genre_IG[item, rng.choice(len(GENRES), count, False, weight / weight.sum())] = 1
    return genre_IG


def _ratings(
    rng: np.random.Generator, genre_IG: np.ndarray, year_I: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    taste_UG = rng.normal(0, 1, (USERS, len(GENRES)))
    match_UI = taste_UG @ (genre_IG / np.sqrt(genre_IG.sum(axis=1, keepdims=True))).T
    quality_I = rng.normal(0, 0.4, ITEMS)
    popularity_I = np.log(1 / (rng.permutation(ITEMS) + 12.0)) * 0.9
    # Gumbel top-n: n films without replacement, likelier where popularity and taste say so.
    key_UI = popularity_I + 1.4 * match_UI + rng.gumbel(size=(USERS, ITEMS))
    share_U = rng.lognormal(0, 0.8, USERS)
    count_U = np.clip((share_U / share_U.sum() * RATINGS).astype(int), 20, ITEMS // 2)
    order_UI = np.argsort(-key_UI, axis=1)
    user_R = np.repeat(np.arange(USERS), count_U)
    item_R = np.concatenate([order_UI[u, :n] for u, n in enumerate(count_U)])
    stars_R = 3.4 + rng.normal(0, 0.3, USERS)[user_R] + quality_I[item_R]
    stars_R = stars_R + 0.45 * match_UI[user_R, item_R] + rng.normal(0, 0.6, len(user_R))
    rating_R = np.clip(np.round(stars_R * 2) / 2, 0.5, 5.0)
    opened_U = rng.integers(1_280_000_000, 1_640_000_000, USERS)
    earliest_R = np.maximum(opened_U[user_R], (year_I[item_R] - 1970) * 31_556_952)
    time_R = earliest_R + rng.integers(0, 20_000_000, len(user_R))
    return user_R + 1, item_R + 1, rating_R, time_R


def _movies_csv(rng: np.random.Generator, genre_IG: np.ndarray, year_I: np.ndarray) -> bytes:
    names = [f"{a} {b}{c}" for c in _PLACE for a in _FIRST for b in _SECOND]
    chosen = rng.permutation(len(names))[:ITEMS]
    out = io.StringIO()
    out.write("movieId,title,genres\r\n")
    for item in range(ITEMS):
        title = f"{names[chosen[item]]} ({year_I[item]})"
        title = f'"{title}"' if "," in title else title
        genres = "|".join(g for g, has in zip(GENRES, genre_IG[item], strict=True) if has)
        out.write(f"{item + 1},{title},{genres}\r\n")
    return out.getvalue().encode()


def _ratings_csv(
    user_R: np.ndarray, item_R: np.ndarray, rating_R: np.ndarray, time_R: np.ndarray
) -> bytes:
    rows = zip(user_R.tolist(), item_R.tolist(), rating_R.tolist(), time_R.tolist(), strict=True)
    lines = [f"{user},{item},{rating},{time}\r\n" for user, item, rating, time in rows]
    return ("userId,movieId,rating,timestamp\r\n" + "".join(lines)).encode()
