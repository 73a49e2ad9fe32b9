"""The embedded data set: generated, MovieLens-shaped, no network.

About 600 people with tastes by genre rate 1,500 invented films: few films are popular, people pick
what suits them and rate it higher, over a dozen years. They watch in sessions, in each most of a
series, and their tastes drift; so what comes next follows from what was last. The same seed gives
the same bytes.
"""

# Shape letters: I = films, G = genres, S = series, F = films of a series, U = users, T = sessions
# of one user, N = ratings of one user, R = all ratings.

import io
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

USERS, ITEMS, RATINGS = 600, 1500, 60_000
SERIES = 10
"""Films of a series."""
SEEN, ALONE = 0.6, 0.8
"""Share of a series that a session shows; share of a user's films that belong to no session."""
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


@lru_cache(maxsize=2)
def files(seed: int = 0) -> Mapping[str, bytes]:
    """The data set in MovieLens's csv layout: ratings.csv and movies.csv.

    Args:
        seed: Another seed gives another data set of the same shape.
    """
    rng = np.random.default_rng([seed, 20])
    genre_IG = _film_genres(rng)
    year_I = rng.integers(1950, 2020, ITEMS)
    user_R, item_R, time_R, match_R = _histories(rng, _films(rng, genre_IG, year_I))
    rating_R = _stars(rng, user_R, item_R, match_R)
    return {
        "movies.csv": _movies_csv(rng, genre_IG, year_I),
        "ratings.csv": _ratings_csv(user_R + 1, item_R + 1, rating_R, time_R),
    }


class _Films(NamedTuple):
    """What people choose by.

    Args:
        profile_IG: Genres, of length 1.
        appeal_I: Logarithm of how popular a film is.
        released_I: Seconds since 1970.
        film_SF: The films of each series, in its order.
    """

    profile_IG: np.ndarray
    appeal_I: np.ndarray
    released_I: np.ndarray
    film_SF: np.ndarray


def _film_genres(rng: np.random.Generator) -> np.ndarray:
    genre_IG = np.zeros((ITEMS, len(GENRES)))
    weight = 1 / np.arange(2, len(GENRES) + 2)
    for item in range(ITEMS):
        count = rng.integers(1, 4)
        genre_IG[item, rng.choice(len(GENRES), count, False, weight / weight.sum())] = 1
    return genre_IG


def _films(rng: np.random.Generator, genre_IG: np.ndarray, year_I: np.ndarray) -> _Films:
    main_I = (genre_IG * rng.random(genre_IG.shape)).argmax(axis=1)
    film_SF = np.lexsort((rng.random(ITEMS), main_I)).reshape(-1, SERIES)  # films of one genre
    appeal_I = np.empty(ITEMS)
    appeal_S = -1.1 * np.log(rng.permutation(len(film_SF)) + 7.0)
    appeal_I[film_SF] = appeal_S[:, None] + rng.normal(0, 0.4, film_SF.shape)
    released_I = (year_I - 1970) * 31_556_952
    profile_IG = genre_IG / np.sqrt(genre_IG.sum(axis=1, keepdims=True))
    return _Films(profile_IG, appeal_I, released_I, film_SF)


def _histories(
    rng: np.random.Generator, films: _Films
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(R,) users, films, times and how well a film suits its user, by user and then by time."""
    early_UG, later_UG = rng.normal(0, 1, (2, USERS, len(GENRES)))
    share_U = rng.lognormal(0, 0.8, USERS)
    count_U = np.clip((share_U / share_U.sum() * RATINGS).astype(int), 20, ITEMS // 2)
    opened_U = rng.integers(1_280_000_000, 1_640_000_000, USERS)
    items, times, matches = [], [], []
    for early_G, later_G, count, opened in zip(
        early_UG, later_UG, count_U.tolist(), opened_U.tolist(), strict=True
    ):
        taste_2G = np.stack([early_G, 0.2 * early_G + later_G])
        match_I2 = films.profile_IG @ taste_2G.T
        item_N, session_N = _watched(rng, films, match_I2, count)
        time_N = _times(rng, opened, session_N)
        seen = np.flatnonzero(time_N >= films.released_I[item_N])[:count]
        items.append(item_N[seen])
        times.append(time_N[seen])
        matches.append(match_I2[items[-1]].mean(axis=1))
    user_R = np.repeat(np.arange(USERS), [len(item_N) for item_N in items])
    return user_R, np.concatenate(items), np.concatenate(times), np.concatenate(matches)


def _watched(
    rng: np.random.Generator, films: _Films, match_I2: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) films of one user in order, each once, and the session that each is chosen in.

    Args:
        rng: The randomness.
        films: All films.
        match_I2: How well each film suits the user at first and at last.
        count: Films that the user sees; N is more, for some may not be released yet.
    """
    film_TF = films.film_SF[_series_by_session(rng, films, match_I2, count)]
    place_TF = np.arange(SERIES) + rng.normal(0, 3, film_TF.shape)
    film_TF = np.take_along_axis(film_TF, place_TF.argsort(axis=1), axis=1)
    seen_TF = rng.random(film_TF.shape) < SEEN
    # Gumbel top-n: films without replacement, likelier where popularity and taste say so.
    key_I = films.appeal_I + 1.4 * match_I2.mean(axis=1) + rng.gumbel(size=ITEMS)
    alone = np.argsort(-key_I)[: int(count * ALONE)]
    session_N = np.concatenate([np.nonzero(seen_TF)[0], rng.integers(0, len(film_TF), len(alone))])
    place_N = np.concatenate([np.nonzero(seen_TF)[1], rng.integers(0, SERIES, len(alone))])
    item_N = np.concatenate([film_TF[seen_TF], alone])
    order_N = np.lexsort((place_N, session_N))
    _, first = np.unique(item_N[order_N], return_index=True)  # nobody rates a film twice
    kept = order_N[np.sort(first)]
    return item_N[kept], session_N[kept]


def _series_by_session(
    rng: np.random.Generator, films: _Films, match_I2: np.ndarray, count: int
) -> list[int]:
    """The series of each session, no series twice; tastes drift from the first session on."""
    sessions = min(len(films.film_SF), int(count / (SERIES * SEEN)) + 2)
    drift_T = np.linspace(0, 1, sessions)
    match_ST = match_I2[films.film_SF].mean(axis=1) @ np.stack([1 - drift_T, drift_T])
    key_ST = films.appeal_I[films.film_SF].mean(axis=1)[:, None] + 1.4 * match_ST
    key_ST += rng.gumbel(size=key_ST.shape)
    chosen: list[int] = []
    for key_S in key_ST.T:
        key_S[chosen] = -np.inf
        chosen.append(int(key_S.argmax()))
    return chosen


def _times(rng: np.random.Generator, opened: int, session_N: np.ndarray) -> np.ndarray:
    """(N,) seconds: days between sessions, a minute or nothing between the films of one."""
    gap_N = rng.integers(0, 90, len(session_N)) * (rng.random(len(session_N)) < 0.9)
    is_new_N = np.diff(session_N, prepend=session_N[0]) > 0
    gap_N[is_new_N] += rng.exponential(10 * 86_400, is_new_N.sum()).astype(int) + 3_600
    return opened + np.cumsum(gap_N)


def _stars(
    rng: np.random.Generator, user_R: np.ndarray, item_R: np.ndarray, match_R: np.ndarray
) -> np.ndarray:
    quality_I = rng.normal(0, 0.4, ITEMS)
    stars_R = 3.4 + rng.normal(0, 0.3, USERS)[user_R] + quality_I[item_R]
    stars_R = stars_R + 0.45 * match_R + rng.normal(0, 0.6, len(user_R))
    rating_R: np.ndarray = np.clip(np.round(stars_R * 2) / 2, 0.5, 5.0)
    return rating_R


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
