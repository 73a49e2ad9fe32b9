"""Every row that is read is kept or counted, a ratings log and every rule for repeats included."""

from collections import Counter, defaultdict
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recray.config import DataSettings, Duplicates, Settings
from recray.data.accounting import account, check_times_known, times_read
from recray.data.feedback import with_log
from recray.data.feedback_events import LoggedRating
from recray.data.feedback_log import LogWriter, RatingsLog
from recray.data.filtered import item_rules
from recray.data.formats.layout import FileRange, RatingsFile, RatingsFormat
from recray.data.scan import Scanned, join_scans, scan
from recray.data.source import detect_source
from recray.data.spill import SpillFile, SpillFolder
from recray.data.tasks import gather
from recray.errors import LostRows, RecrayError
from recray.reporting.data_text import remarks, row_account
from recray.schema import UNKNOWN_TIME
from recray.storage import Folder


def scanned(read, **reasons):
    return Scanned(0, read, 0, [], pa.table({}), Counter(reasons), True, 0)


def test_rows_that_are_kept_and_counted_make_those_that_were_read():
    counts = account(scanned(20, bad=3, worse=2), Counter(duplicates=4, core=0), 11)
    assert counts.model_dump() == {
        "read": 20,
        "kept": 11,
        "dropped": {"duplicates": 4, "rejected": 5},
    }


@pytest.mark.parametrize("kept", [10, 12])
def test_a_lost_or_doubled_row_is_a_fault(kept):
    with pytest.raises(LostRows, match=r"20 rows were read, and 1. kept and 4 duplicates, 5 rej"):
        account(scanned(20, bad=5), Counter(duplicates=4), kept)
    assert LostRows.exit_code == 1


def test_one_cut_in_time_is_refused_above_one_percent_of_unknown_times():
    check_times_known("temporal", 1000, 990)
    with pytest.raises(RecrayError, match=r"11 of 1,000 ratings \(1.1%\).*per-user-ratio"):
        check_times_known("temporal", 1000, 989)


def test_a_source_without_times_has_no_rule_and_no_unknown_one():
    columns = ("raw_user", "raw_item", "timestamp")
    ranges = [
        FileRange(RatingsFile("a", "a", "plain", RatingsFormat(",", columns[:n], header=True)))
        for n in (2, 3)
    ]
    assert times_read(tuple(ranges[:1]), 7).model_dump() == {"format": None, "unknown": 0}
    assert times_read(tuple(ranges), 7).model_dump() == {"format": "s", "unknown": 7}


def test_people_read_what_became_of_every_row_in_two_lines():
    counts = account(scanned(1020, bad=3), Counter(duplicates=4, min_rating=1002), 11)
    facts = {"rows": counts.model_dump(), "times": {"format": "ms", "unknown": 2}, "counts": {}}
    assert row_account(facts) == [
        "rows: 1,020 read = 11 kept + 4 repeated + 1,002 below data.min_rating + 3 rejected",
        "times: read as milliseconds since 1970; 2 are missing or cannot be read",
    ]
    bare = facts | {"times": {"format": None, "unknown": 0}}
    assert len(row_account(bare)) == 1
    assert remarks(facts) == row_account(facts)
    assert remarks(bare | {"rows": {"read": 5, "kept": 5, "dropped": {}}}) == []


# ------------------------------------------------------------------- source and log together


def ingested(given, folder, settings):
    """The account of a source after its partitions are filled, and every pair that is kept."""
    spill = SpillFolder(Folder(str(folder)))
    scans = [scan(n, file_range=one, spill=spill) for n, one in enumerate(given.ranges)]
    joined, data = join_scans(given, scans, settings.data), settings.data
    common = {"scanned": joined.files, "partitions": 8, "timed": joined.timed}
    parts = [
        gather(n, spill=spill, settings=settings, rules=item_rules(given, data), **common)
        for n in range(8)
    ]
    tables = [spill.read(SpillFile.PARTITION, n, 0) for n in range(8)]
    tables += [spill.read(SpillFile.LATE, n) for n in range(8) if spill.exists(SpillFile.LATE, n)]
    rows = pa.concat_tables(tables)
    columns = (rows[name].to_pylist() for name in ("raw_user", "raw_item", "rating", "timestamp"))
    kept = {(user, item): found for user, item, *found in zip(*columns, strict=True)}
    assert len(kept) == len(rows), "a pair is kept twice"
    dropped = sum((part.dropped for part in parts), Counter[str]())
    return account(joined, dropped, len(rows)), kept


RULES = {"last": lambda r: r[-1], "mean": np.mean, "sum": sum, "count": len, "max": max}
user, item, stars = st.integers(1, 4), st.integers(1, 3), st.integers(1, 5)
triples = st.lists(st.tuples(user, item, stars), min_size=1, max_size=12)


@pytest.mark.parametrize("how", get_args(Duplicates))
@given(rated=triples, later=triples, low=st.sampled_from([None, 3.0]), timed=st.booleans())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_source_and_log_are_accounted_for_and_merged_by_one_rule(
    tmp_path_factory, how, rated, later, low, timed
):
    folder = tmp_path_factory.mktemp("account")
    lines = [f"{u},{i},{r},{n + 5 if timed else 0}\n" for n, (u, i, r) in enumerate(rated)]
    (folder / "own.csv").write_text("user,item,rating,time\n" + "".join(lines) + "\n9,9,bad,1\n")
    source = detect_source(str(folder / "own.csv"))
    log = RatingsLog.of(str(folder / "log"), "own", (False, False), how)
    events = [LoggedRating(*row, str(n), (n + 100) * 10**6) for n, row in enumerate(later)]
    LogWriter(log).append(events)
    more, added = with_log(source, log, how)
    data = DataSettings(duplicates=how, min_rating=low, max_rejected=1.0)
    counts, kept = ingested(more, folder / "spill", Settings(data=data))

    old, new = defaultdict(list), defaultdict(list)
    for pairs, rows in ((old, rated), (new, later)):
        for u, i, r in rows:
            pairs[u, i].append(r)
    floor = low or 0
    wanted = {pair: RULES[how](mine) for pair, mine in old.items()}
    wanted = {pair: rating for pair, rating in wanted.items() if rating >= floor}
    for pair, mine in new.items():
        rating = RULES[how](mine if how == "last" else old[pair] + mine)
        if rating >= floor:
            wanted[pair] = rating
    assert {pair: rating for pair, (rating, _) in kept.items()} == pytest.approx(wanted)
    assert counts.dropped["rejected"] == 1
    assert added.ratings == len(new)
    assert counts.read == len(rated) + 1 + (len(new) if how == "last" else len(later))
    times = {pair: time for pair, (_, time) in kept.items() if pair not in new}
    assert all((time == UNKNOWN_TIME) != timed for time in times.values())
