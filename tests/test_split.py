"""Splits: pure functions of ids and a seed, whatever the order and the place of rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recray.config import SplitSettings
from recray.data import split
from recray.data.split import (
    FOLD_IN,
    SLOTS,
    TEST,
    TRAIN,
    VALID,
    assign,
    hash_ids,
    partitions_for,
    places_in_order,
    slot_of,
    within_given,
)
from recray.errors import RecrayError
from recray.schema import UNKNOWN_TIME

KINDS = ("random", "per-user-random", "leave-one-out")
PER_USER = ("per-user-random", "leave-one-out")

# Few users, items and times, so that users have several rows and times tie.
pairs = st.tuples(st.integers(0, 6), st.integers(0, 40))
row_sets = st.dictionaries(pairs, st.integers(0, 5), min_size=1, max_size=60)
fractions = st.sampled_from([0.0, 0.1, 0.25, 0.4])
all_settings = st.builds(
    SplitSettings,
    kind=st.sampled_from(KINDS),
    test=fractions,
    valid=fractions,
    seed=st.integers(0, 2**32),
)


def columns(rows):
    user, item, time = (np.array(c, np.int64) for c in zip(*rows, strict=True))
    return user, item, time


def split_by_pair(rows, settings):
    """The split of each (user, item)."""
    user, item, time = columns(rows)
    which = assign(user, item, time, settings)
    assert len(which) == len(rows)
    return {row[:2]: int(split) for row, split in zip(rows, which, strict=True)}


@given(row_sets, all_settings, st.randoms(use_true_random=False))
def test_every_row_has_one_split_whatever_the_order_of_the_rows(ratings, settings, random):
    rows = [(*pair, time) for pair, time in ratings.items()]
    whole = split_by_pair(rows, settings)
    assert set(whole) == set(ratings)
    assert set(whole.values()) <= {TRAIN, VALID, TEST}
    shuffled = random.sample(rows, len(rows))
    assert split_by_pair(shuffled, settings) == whole


@given(row_sets, all_settings, st.integers(0, 127))
def test_the_split_is_the_same_when_users_lie_on_different_workers(ratings, settings, mask):
    rows = [(*pair, time) for pair, time in ratings.items()]
    parts = [[r for r in rows if (mask >> r[0] & 1) == side] for side in (0, 1)]
    found = {}
    for part in filter(None, parts):
        found |= split_by_pair(part, settings)
    assert found == split_by_pair(rows, settings)


@given(row_sets, all_settings.filter(lambda s: s.kind in PER_USER))
def test_every_user_keeps_a_training_row_in_the_per_user_kinds(ratings, settings):
    whole = split_by_pair([(*pair, time) for pair, time in ratings.items()], settings)
    trained = {user for (user, _), split in whole.items() if split == TRAIN}
    assert trained == {user for user, _ in ratings}


@given(row_sets)
def test_leave_one_out_never_trains_on_what_came_later(ratings):
    settings = SplitSettings(kind="leave-one-out")
    whole = split_by_pair([(*pair, time) for pair, time in ratings.items()], settings)
    for user in {user for user, _ in ratings}:
        mine = [(split, ratings[pair]) for pair, split in whole.items() if pair[0] == user]
        times = {s: [t for split, t in mine if split == s] for s in (TRAIN, VALID, TEST)}
        assert len(times[TEST]) == (len(mine) >= 2)
        assert len(times[VALID]) == (len(mine) >= 3)
        assert max(times[TRAIN]) <= min(times[VALID] + times[TEST], default=np.inf)
        assert max(times[VALID], default=0) <= min(times[TEST], default=np.inf)


def test_leave_one_out_takes_the_latest_row():
    user, item, time = columns(
        [(1, 10, 50), (1, 11, 90), (1, 12, 70), (2, 10, 3), (2, 11, 2), (3, 9, 1)]
    )
    settings = SplitSettings(kind="leave-one-out")
    assert assign(user, item, time, settings).tolist() == [TRAIN, TEST, VALID, TEST, TRAIN, TRAIN]
    no_valid = SplitSettings(kind="leave-one-out", valid=0)
    assert assign(user, item, time, no_valid).tolist() == [TRAIN, TEST, TRAIN, TEST, TRAIN, TRAIN]


def test_leave_one_out_refuses_data_without_timestamps():
    ids = np.arange(3)
    with pytest.raises(RecrayError, match=r"leave-one-out needs timestamps.*per-user-random"):
        assign(ids, ids, None, SplitSettings(kind="leave-one-out"))


@pytest.mark.parametrize(
    ("rows", "test", "valid", "expected"),
    [
        (10, 0.2, 0.1, (7, 1, 2)),
        (5, 0.1, 0.1, (3, 1, 1)),  # 0.5 rounds up
        (4, 0.1, 0.1, (4, 0, 0)),
        (2, 0.4, 0.4, (1, 0, 1)),
        (1, 0.5, 0.4, (1, 0, 0)),
        (8, 0.0, 0.25, (6, 2, 0)),
    ],
)
def test_per_user_random_takes_the_rounded_fraction_of_each_user(rows, test, valid, expected):
    user, item = np.repeat([4, 9], rows), np.tile(np.arange(rows), 2)
    settings = SplitSettings(kind="per-user-random", test=test, valid=valid)
    which = assign(user, item, None, settings)
    for one in (4, 9):
        assert tuple(np.bincount(which[user == one], minlength=3)) == expected


def test_random_takes_about_the_fractions_of_all_rows():
    user, item = (grid.ravel() for grid in np.meshgrid(np.arange(200), np.arange(200)))
    which = assign(user, item, None, SplitSettings(kind="random", test=0.2, valid=0.1))
    shares = np.bincount(which, minlength=3) / len(which)
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.01)


@pytest.mark.parametrize("kind", ["random", "per-user-random"])
def test_another_valid_fraction_leaves_the_test_split_as_it_is(kind):
    user, item = np.repeat(np.arange(20), 30), np.tile(np.arange(30), 20)
    little, much = (
        assign(user, item, None, SplitSettings(kind=kind, test=0.2, valid=v)) for v in (0.0, 0.5)
    )
    assert ((little == TEST) == (much == TEST)).all()
    assert (little == TEST).any()


@pytest.mark.parametrize("kind", ["random", "per-user-random"])
def test_another_seed_gives_another_split(kind):
    user, item = np.repeat(np.arange(20), 30), np.tile(np.arange(30), 20)
    one, two = (assign(user, item, None, SplitSettings(kind=kind, seed=s)) for s in (0, 1))
    assert (one != two).any()


def splitmix(state):
    """One output of splitmix64 from a state, in Python's own integers."""
    top = (1 << 64) - 1
    value = (state + 0x9E3779B97F4A7C15) & top
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & top
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & top
    return value ^ value >> 31


def test_the_hash_chains_splitmix64_over_seed_and_ids():
    assert splitmix(0) == 0xE220A8397B1DCDAF, "published first output for seed 0"
    for seed, user, item in [(0, 0, 0), (0, 1, 2), (0, 2, 1), (7, 10**18, 3)]:
        expected = splitmix(splitmix(splitmix(seed) + user) + item)
        assert int(hash_ids(seed, np.array([user]), np.array([item]))[0]) == expected


def test_users_spread_evenly_over_the_slots():
    counts = np.bincount(slot_of(np.arange(SLOTS * 100)), minlength=SLOTS)
    assert len(counts) == SLOTS
    assert counts.min() > 50
    assert counts.max() < 150


@pytest.mark.parametrize(
    ("rows", "buckets"),
    [(0, 8), (4_000_000, 8), (4_000_001, 16), (32_000_204, 128), (10**12, 256)],
)
def test_the_number_of_buckets_follows_from_the_rows(rows, buckets):
    assert partitions_for(rows) == buckets
    assert SLOTS % buckets == 0


# ------------------------------------------------------------------------ folds, times, items


@given(st.integers(0, 5))
def test_every_rating_is_in_the_test_of_exactly_one_fold(seed):
    user, item = (ids.reshape(-1) for ids in np.meshgrid(np.arange(30), np.arange(20)))
    tests = [
        assign(user, item, None, SplitSettings(kind="kfold", folds=4, fold=f, seed=seed)) == TEST
        for f in range(4)
    ]
    assert np.sum(tests, axis=0).tolist() == [1] * 600
    assert all(100 < fold.sum() < 200 for fold in tests)


def test_a_fold_beyond_the_last_is_refused():
    with pytest.raises(ValueError, match="fold=5 must be below folds=5"):
        SplitSettings(kind="kfold", fold=5)


def test_per_user_ratio_takes_the_last_share_of_each_user():
    user = np.repeat([1, 2], [10, 5])
    time = np.concatenate([np.arange(10)[::-1], np.arange(5)])
    settings = SplitSettings(kind="per-user-ratio", test=0.2, valid=0.2)
    which = assign(user, np.arange(15), time, settings)
    assert time[(user == 1) & (which == TEST)].tolist() == [9, 8]
    assert time[(user == 1) & (which == VALID)].tolist() == [7, 6]
    assert time[(user == 2) & (which == TEST)].tolist() == [4]
    assert time[(user == 2) & (which == VALID)].tolist() == [3]


def test_temporal_is_one_cut_for_all():
    time = np.array([5, 1, 3, 2, 4])
    ids = np.arange(5)
    which = assign(ids, ids, time, SplitSettings(kind="temporal"), cuts=(3, 5))
    assert which.tolist() == [TEST, TRAIN, VALID, TRAIN, VALID]


@given(
    st.lists(st.integers(0, 10**9) | st.integers(0, 20), min_size=2, max_size=60),
    st.floats(0.01, 0.9),
)
def test_a_cut_is_the_earliest_that_leaves_no_more_than_the_share(times, share):
    times = np.array(times)

    def count(begin, end, width):
        inside = times[(times >= begin) & (times < end)]
        return np.bincount((inside - begin) // width, minlength=split.BINS)

    allowed = share * len(times)
    cut = split.cut_at(count, int(times.min()), int(times.max()), allowed)
    assert (times >= cut).sum() <= allowed
    assert (times >= cut - 1).sum() > allowed


def test_whole_items_are_split_by_their_share():
    item = np.repeat([1, 2, 3], [20, 10, 1])
    key = split.hash_ids(0, item, np.arange(31))
    which = split.assign_by_share(item, key, SplitSettings(kind="per-item-random"))
    for raw, (tests, valids) in {1: (2, 2), 2: (1, 1), 3: (0, 0)}.items():
        assert (which[item == raw] == TEST).sum() == tests
        assert (which[item == raw] == VALID).sum() == valids


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("leave-one-out", [TRAIN, VALID, TEST, TRAIN, TRAIN, TEST, TRAIN, TRAIN]),
        ("per-user-ratio", [TRAIN, VALID, TEST, TRAIN, TRAIN, TEST, TRAIN, TRAIN]),
        ("temporal", [TRAIN, VALID, TEST, TRAIN, TRAIN, TEST, TRAIN, TRAIN]),
    ],
)
def test_a_rating_of_unknown_time_stands_first_and_trains(kind, expected):
    user = np.array([1, 1, 1, 1, 2, 2, 3, 3])
    time = np.array([-9, 3, 5, UNKNOWN_TIME, UNKNOWN_TIME, 7, UNKNOWN_TIME, UNKNOWN_TIME])
    settings = SplitSettings(kind=kind, test=0.25, valid=0.25)
    assert assign(user, np.arange(8), time, settings, cuts=(3, 5)).tolist() == expected


@given(row_sets, st.sampled_from(["leave-one-out", "per-user-ratio", "temporal"]), fractions)
def test_an_unknown_time_is_never_a_target(ratings, kind, share):
    user, item, time = columns([(*pair, time) for pair, time in ratings.items()])
    unknown = time == 0
    settings = SplitSettings(kind=kind, test=share, valid=share)
    which = assign(user, item, np.where(unknown, UNKNOWN_TIME, time), settings, cuts=(2, 4))
    assert (which[unknown] == TRAIN).all()
    shifted = assign(user, item, np.where(unknown, -1, time), settings, cuts=(2, 4))
    assert (which[~unknown] == shifted[~unknown]).all(), "as if it were the earliest of all"


@pytest.mark.parametrize("kind", ["per-user-ratio", "temporal", "leave-one-out"])
def test_what_needs_time_refuses_data_without(kind):
    ids = np.arange(4)
    with pytest.raises(RecrayError, match="needs timestamps"):
        assign(ids, ids, None, SplitSettings(kind=kind))


# ------------------------------------------------------------------------------------- next


def by_hand(rows, cut=None, valid=True):
    """The split of next, counted user by user: rows are (user, item, time), in file order."""
    which = [TRAIN] * len(rows)
    for user in {row[0] for row in rows}:
        own = sorted((row[2], line) for line, row in enumerate(rows) if row[0] == user)
        targets = own[-1:] if len(own) >= 3 else []
        validates = own[-2:-1] if len(own) >= 3 and valid else []
        for time, line in own:
            if time == UNKNOWN_TIME or (cut is not None and time < cut):
                continue
            split = TRAIN if cut is None else FOLD_IN
            split = VALID if (time, line) in validates else split
            which[line] = TEST if (time, line) in targets else split
    return which


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 99), st.sampled_from([UNKNOWN_TIME, 1, 2, 3])),
        min_size=1,
        max_size=40,
        unique_by=lambda row: row[:2],
    ),
    st.sampled_from([None, 2, 3]),
    st.sampled_from([0.0, 0.1]),
)
def test_next_takes_the_last_rows_of_each_user_in_the_order_of_the_file(rows, cut, valid):
    user, item, time = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    cuts = None if cut is None else (cut, cut)
    settings, line = SplitSettings(kind="next", valid=valid), np.arange(len(rows)) * 3 + 7
    which = assign(user, item, time, settings, cuts, line)
    assert which.tolist() == by_hand(rows, cut, valid > 0)
    shuffled = np.random.default_rng(0).permutation(len(rows))
    again = assign(user[shuffled], item[shuffled], time[shuffled], settings, cuts, line[shuffled])
    assert again.tolist() == which[shuffled].tolist(), "the place in memory decides nothing"


def test_next_without_lines_takes_the_rows_of_leave_one_out():
    user, item = people(300, 4)
    time = np.where(item == 0, 5, 9)  # three of four rows tie
    one = assign(user, item, time, SplitSettings(kind="leave-one-out"))
    assert (assign(user, item, time, SplitSettings(kind="next")) == one).all()


def test_next_without_times_goes_by_the_lines():
    user, item = people(3, 4)
    which = assign(user, item, None, SplitSettings(kind="next"), None, np.arange(12)[::-1])
    assert which.reshape(3, 4).tolist() == [[TEST, VALID, TRAIN, TRAIN]] * 3


@pytest.mark.parametrize("kind", ["leave-one-out", "per-user-ratio"])
def test_lines_order_what_came_at_one_time(kind):
    user, item = people(50, 5)
    settings = SplitSettings(kind=kind, test=0.2, valid=0.2)
    line = np.arange(250)
    which = assign(user, item, np.full(250, 9), settings, None, line).reshape(50, 5)
    assert (which == [TRAIN, TRAIN, TRAIN, VALID, TEST]).all()
    mirrored = assign(user, item, np.full(250, 9), settings, None, line[::-1]).reshape(50, 5)
    assert (mirrored == [TEST, VALID, TRAIN, TRAIN, TRAIN]).all()


def test_a_place_counts_the_rows_of_the_user_before_it():
    user, item = np.array([7, 3, 7, 7, 3]), np.array([1, 1, 2, 3, 9])
    time = np.array([5, 2, 5, UNKNOWN_TIME, 2])
    line = np.array([0, 1, 2, 3, 4])
    assert places_in_order(user, item, time, 0, line).tolist() == [1, 0, 2, 0, 1]
    hashed = places_in_order(user, item, time, 0, None)
    assert sorted(hashed[user == 7].tolist()) == [0, 1, 2]
    assert hashed[3] == 0
    last = assign(user, item, time, SplitSettings(kind="leave-one-out", seed=0)) == TEST
    places = dict(zip(user[last].tolist(), hashed[last].tolist(), strict=True))
    assert places == {7: 2, 3: 1}, "both take one hash"


# ---------------------------------------------------------------------- held-out users, given


def people(users, each):
    """Ratings of so many users, each with so many items."""
    return np.repeat(np.arange(users), each), np.tile(np.arange(each), users)


@pytest.mark.parametrize(("fold_in", "known"), [(0.8, 16), (0.01, 1), (0.99, 19), (5, 5), (1, 1)])
def test_held_out_users_are_whole_and_known_by_a_part(fold_in, known):
    user, item = people(2000, 20)
    settings = SplitSettings(kind="held-out-users", test=0.2, valid=0.1, fold_in=fold_in)
    which = assign(user, item, None, settings).reshape(2000, 20)
    trains = (which == TRAIN).all(axis=1)
    for code, share in ((TEST, 0.2), (VALID, 0.1)):
        held = (which == code).any(axis=1)
        assert not (held & trains).any()
        assert abs(held.mean() - share) < 0.03
        assert ((which[held] == FOLD_IN).sum(axis=1) == known).all()
        assert ((which[held] == code).sum(axis=1) == 20 - known).all()
    assert trains.sum() + ((which == TEST) | (which == VALID)).any(axis=1).sum() == 2000


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_users_lie_in_every_partition(seed):
    user, item = people(8000, 2)
    settings = SplitSettings(kind="held-out-users", test=0.2, valid=0.1, fold_in=0.5, seed=seed)
    held = np.unique(user[assign(user, item, None, settings) == TEST])
    counts = np.bincount(slot_of(held) // (SLOTS // 8), minlength=8)
    assert counts.min() > 150, "200 on average"
    assert counts.max() < 250


@pytest.mark.parametrize(("each", "fold_in"), [(1, 0.5), (5, 5), (3, 10)])
def test_a_user_with_too_few_ratings_to_ask_for_any_trains(each, fold_in):
    user, item = people(100, each)
    settings = SplitSettings(kind="held-out-users", test=0.5, valid=0.1, fold_in=fold_in)
    assert (assign(user, item, None, settings) == TRAIN).all()


def test_what_the_source_says_stays_but_for_a_share_that_validates():
    user, item = people(500, 20)
    part = np.where(item < 15, TRAIN, TEST).astype(np.int8)
    which = within_given(user, item, part, SplitSettings(kind="given", valid=0.2))
    assert ((which == TEST) == (part == TEST)).all()
    assert abs((which[part == TRAIN] == VALID).mean() - 0.2) < 0.02
    none = within_given(user, item, part, SplitSettings(kind="given", valid=0.0))
    assert (none == part).all()
