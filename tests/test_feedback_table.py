"""The ratings of a log in few bytes say what the log says."""

import random
import time

import numpy as np
import pytest

from recray.data.feedback_events import LoggedRating, event_table, events_of, settled
from recray.data.feedback_table import Events, RatingTable, mark_of

INTEGERS = (False, False)
NOW = int(time.time()) * 1_000_000


def shown(table, user):
    return [(one.item, one.rating, one.received) for one in table.of_user(user)]


def random_events(seed, count=400, text=False):
    rng = random.Random(seed)
    made = []
    for n in range(count):
        user, item = rng.randrange(8), rng.randrange(6)
        what = rng.random()
        rating = None if what < 0.2 else rng.randrange(1, 11) / 2
        item = None if what < 0.05 else item
        ids = (f"u{user}", item if item is None else f"i{item}") if text else (user, item)
        made.append(LoggedRating(*ids, rating, str(n), NOW + n))
    return made


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_it_says_what_the_log_says_whatever_the_order_and_however_it_came(seed, text):
    """Events come one by one, in bulk, late and twice; the answer follows from the log alone."""
    both, events = (text, text), random_events(seed, text=text)
    rng, table = random.Random(seed), RatingTable((text, text))
    mixed = [*events, *rng.sample(events, 30)]
    rng.shuffle(mixed)
    place = 0
    while place < len(mixed):
        some = mixed[place : place + rng.randrange(1, 60)]
        place += len(some)
        if rng.random() < 0.3:
            table.fold([table.narrow(event_table(some, both))])
        else:
            table.add(event_table(some, both))
    expected = events_of(settled(event_table(events, both))[0])
    users = {event.user for event in events}
    for user in users:
        own = [(e.item, e.rating, e.received) for e in expected if e.user == user]
        assert shown(table, user) == own
    assert table.ratings == len(expected)
    assert table.users == len({event.user for event in expected})
    table.fold([])
    assert table.ratings == len(expected)
    assert shown(table, "nobody" if text else 99) == []


def test_few_events_lie_beside_the_arrays_and_many_make_them_anew(monkeypatch):
    monkeypatch.setattr("recray.data.feedback_table.FEW_EVENTS", 10)
    table = RatingTable(INTEGERS)
    for n in range(25):
        table.add(event_table([LoggedRating(n, 1, 3.0, str(n), NOW + n)], INTEGERS))
    assert (table.users, table.ratings) == (25, 25)
    assert len(table._held[1]) == 3, "two times eleven events were put into the arrays"
    assert shown(table, 3) == shown(table, 3) == [(1, 3.0, NOW + 3)]


def test_stars_that_no_binary_number_has_come_back_as_they_were_sent():
    table = RatingTable(INTEGERS)
    table.add(event_table([LoggedRating(1, 2, 3.3, "k", NOW)], INTEGERS))
    assert shown(table, 1) == [(2, 3.3, NOW)]
    assert table.of_user(1)[0].mark == mark_of("k")


def test_a_rating_takes_less_than_50_bytes():
    count = 200_000
    rng = np.random.default_rng(0)
    table = RatingTable(INTEGERS)
    events = Events(
        rng.integers(0, count // 10, count),
        rng.integers(0, 10**6, count),
        np.full(count, 4, np.float32),
        NOW + np.arange(count),
        np.arange(count, dtype=np.uint32),
    )
    table.fold([events])
    arrays = table._held[0]
    held = sum(column.nbytes for column in vars(arrays).values())
    assert held / table.ratings < 28
    assert table.ratings > 0.99 * count
