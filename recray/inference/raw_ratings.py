"""What a user has done, in raw ids: ratings and plain items, with times or in the order given."""

# Shape letter: N = ratings of one user.

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from recray.data.ids import RawId
from recray.errors import RecrayError
from recray.inference.history import UserRatings
from recray.schema import UNKNOWN_TIME

CLOCK_TOLERANCE = 300
"""Seconds that the clock of whoever gives times may be ahead of ours."""


class RawRating(NamedTuple):
    """A rating by a user, or an item that the user took without rating it.

    Args:
        item: Raw id.
        rating: None for a plain item.
        time: Seconds since 1970; None where only the order is known.
    """

    item: RawId
    rating: float | None = None
    time: int | None = None


RawRatings = list[RawRating]
"""What one user has done; of several ratings of one item the last counts, at its own place."""
RatingsSince = Callable[[RawId], RawRatings]
"""Gives what a user has rated since training."""


class KnownOfUser(NamedTuple):
    """All that is known of a user, new ratings included, by items that training knows.

    Args:
        rated: What the user is folded in from.
        seen: What lists leave out: also the ratings that a filter kept from training.
        changed: Whether the new ratings say anything that was not known.
        skipped: New ratings of items that training does not know; None for a user of the data.
    """

    rated: UserRatings
    seen: UserRatings
    changed: bool
    skipped: int | None = None


def in_order_of_time(ratings: RawRatings, now: int | None = None) -> RawRatings:
    """Sort ratings by their times; without times, and among equal ones, the order given stays.

    Args:
        ratings: Of one user.
        now: When the list is asked for, in seconds; None: by the clock of this machine, which may
            be behind by CLOCK_TOLERANCE.

    Raises:
        RecrayError: Only some have a time, or one is in the future.
    """
    times = [rating.time for rating in ratings if rating.time is not None]
    if not times:
        return ratings
    if len(times) < len(ratings):
        raise RecrayError(
            f"{len(times)} of {len(ratings)} ratings have a time: give one with each, or with none "
            "and in order"
        )
    latest = max(times)
    if now is not None and latest > now:
        raise RecrayError(f"time {latest} is after now, {now}: a history ends before its list")
    if now is None and latest > (clock := int(time.time())) + CLOCK_TOLERANCE:
        raise RecrayError(
            f"time {latest} is in the future: it is {clock} here; give seconds since 1970, or now"
        )
    return sorted(ratings, key=lambda rating: rating.time or 0)


def refuse_later(known: UserRatings, now: int | None) -> None:
    """Refuse to ask for a list at a time before what the user did last, where times are kept.

    Raises:
        RecrayError: A rating is after now.
    """
    if now is None or known.time is None or not len(known.time):
        return
    if (latest := int(known.time.max())) > now:
        raise RecrayError(f"now, {now}, is before the user's last rating, at {latest}")


def user_ratings(
    items: list[int], ratings: RawRatings, plain_rating: float, timed: bool
) -> UserRatings:
    """The last rating of each item, at its own place.

    Args:
        items: Dense id of each rating's item.
        ratings: In order.
        plain_rating: What a plain item counts as.
        timed: Whether a model reads times.
    """
    rows = sorted({item: row for row, item in enumerate(items)}.values())
    item = torch.tensor([items[row] for row in rows], dtype=torch.int64)
    given = [ratings[row].rating for row in rows]
    stars = [plain_rating if rating is None else rating for rating in given]
    known = UserRatings(item, torch.tensor(stars, dtype=torch.float32))
    if not timed:
        return known
    times = [ratings[row].time for row in rows]
    seconds = [UNKNOWN_TIME if each is None else each for each in times]
    return known._replace(time=torch.tensor(seconds, dtype=torch.int64))


def joined(known: UserRatings, new: UserRatings) -> UserRatings:
    """What was known and what came since, in the order of time.

    An item that came again stands at its new place alone. The order of what was known stays, also
    where its times say otherwise: it may be the order of a file.
    """
    old = known.at(~torch.isin(known.item, new.item))
    both = UserRatings(torch.cat([old.item, new.item]), torch.cat([old.rating, new.rating]))
    if old.time is None or new.time is None:
        return both
    latest = old.time.cummax(dim=0).values if len(old.time) else old.time
    before = torch.searchsorted(latest, new.time, right=True)
    before[new.time == UNKNOWN_TIME] = len(old.time)  # it came since training, so after all that
    place = torch.cat([torch.arange(len(old.time)).double(), before - 0.5])
    order = torch.argsort(place, stable=True)
    return both._replace(time=torch.cat([old.time, new.time])).at(order)


def same(one: UserRatings, other: UserRatings, ordered: bool, timed: bool) -> bool:
    """Whether two histories say the same to a model that reads the order, or times, or neither."""
    if len(one.item) != len(other.item):
        return False
    if not ordered:
        one, other = (each.at(torch.argsort(each.item)) for each in (one, other))
    equal = torch.equal(one.item, other.item) and torch.equal(one.rating, other.rating)
    if not timed or one.time is None or other.time is None:
        return equal
    return equal and torch.equal(one.time, other.time)
