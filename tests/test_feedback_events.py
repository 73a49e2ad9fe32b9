"""What events of the ratings log say in the end."""

import random

import pytest

from recray.data.feedback_events import LoggedRating, event_table, events_of, settled

INTEGERS = (False, False)


def came(user=1, item=10, rating=4.0, key="k", received=1):
    return LoggedRating(user, item, rating, key, received)


def left(events, **how):
    """The events that count, and the number of copies, in whatever order they were read."""
    mixed = list(events)
    random.Random(0).shuffle(mixed)
    table, copies = settled(event_table(mixed, INTEGERS), **how)
    return events_of(table), copies


def test_of_a_pair_the_latest_counts():
    events = [came(key="a"), came(rating=2.0, key="b", received=2), came(item=11, received=3)]
    assert left(events) == (events[1:], 0)
    assert left(events, every=True) == (events, 0)


def test_a_copy_counts_by_the_time_the_first_one_came():
    first, other = came(received=3), came(rating=2.0, key="b", received=5)
    assert left([first, other, came(received=9)]) == ([other], 1)


def test_what_was_taken_back_is_gone_and_may_come_again():
    back = came(rating=None, key="b", received=2)
    assert left([came(), back]) == ([], 0)
    again = came(key="c", received=3)
    assert left([came(), back, again]) == ([again], 0)
    assert left([came(), back, again], kept_since=2) == ([back, again], 0)
    assert left([came(), back], kept_since=3) == ([], 0)


def test_all_of_a_user_are_taken_back_and_nobody_elses():
    whole = came(item=None, rating=None, key="x", received=5)
    other, later = came(user=2, received=4), came(item=12, received=6)
    events = [came(), came(item=11, received=2), other, whole, later]
    assert left(events) == ([other, later], 0)
    assert left(events, every=True) == ([other, later], 0)
    assert left(events, kept_since=0) == ([other, whole, later], 0)


@pytest.mark.parametrize("text", [INTEGERS, (True, True)])
def test_nothing_is_said_by_no_event(text):
    assert settled(event_table([], text))[0].num_rows == 0


def test_text_ids_are_told_apart():
    events = [LoggedRating("a", "1", 3.0, "k", 1), LoggedRating("b", "1", 4.0, "k", 2)]
    table, copies = settled(event_table(events, (True, True)))
    assert (events_of(table), copies) == (events, 0)
