"""The order of ratings in prepared data: ties by the file, places, and targets that come last."""

import dataclasses
import random

import pytest

from recray.config import load_settings
from recray.data import ingest, source
from recray.data.dataset import Ratings, in_order
from recray.data.formats import text
from recray.errors import RecrayError
from recray.inference.interactions import interactions_of

pytestmark = pytest.mark.usefixtures("ray_session")
NEXT = "split.kind=next"


@dataclasses.dataclass(frozen=True)
class Row:
    """One rating of a file; a user's sessions are rated in one second each."""

    user: int
    item: int
    rating: int
    time: int


def rows_of_sessions() -> list[Row]:
    """40 users with 12 ratings in 3 seconds, shuffled; user 98 has two ratings, 99 one."""
    draw = random.Random(0)
    rows = [
        Row(user, item, draw.randint(1, 5), 1000 * (user + 1) + draw.randint(0, 2))
        for user in range(40)
        for item in draw.sample(range(60), 12)
    ]
    rows += [Row(98, 1, 5, 7), Row(98, 2, 5, 8), Row(99, 1, 5, 9)]
    draw.shuffle(rows)
    return rows


def write(path, rows, times=True):
    head = "user,item,rating" + ",time" * times
    lines = [f"{r.user},{r.item},{r.rating}" + f",{r.time}" * times for r in rows]
    path.write_text("\n".join([head, *lines]) + "\n")
    return str(path)


def prepare(path, out, *changes):
    settings = load_settings("ranking", None, list(changes))
    return ingest.prepare(source.detect_source(path, settings), str(out), settings, replace=True)


def histories(prepared, *splits):
    """Raw user to raw items in order."""
    rows = in_order(Ratings.concatenate([prepared.load(name) for name in splits]))
    user, item = prepared.user_ids.raw[rows.user], prepared.item_ids.raw[rows.item]
    found: dict[int, list[int]] = {}
    for one, other in zip(user.tolist(), item.tolist(), strict=True):
        found.setdefault(one, []).append(other)
    return found


def in_file_order(rows):
    """The same by a stable sort of the rows as they stand in the file."""
    found: dict[int, list[int]] = {}
    for row in sorted(rows, key=lambda row: row.time):
        found.setdefault(row.user, []).append(row.item)
    return found


def test_the_last_ratings_in_the_order_of_the_file_are_targets(tmp_path, monkeypatch):
    rows = rows_of_sessions()
    path, prints = write(tmp_path / "plays.csv", rows), set()
    for size in (64 << 20, 2000):
        monkeypatch.setattr(text, "RANGE_BYTES", size)
        prepared = prepare(path, tmp_path / "p", NEXT)
        prints.add(str(prepared.manifest["fingerprints"]))
    assert len(prints) == 1, "blocks change nothing"
    expected = in_file_order(rows)
    short = {98: expected.pop(98), 99: expected.pop(99)}
    assert histories(prepared, "train") == {u: i[:-2] for u, i in expected.items()} | short
    assert histories(prepared, "valid") == {u: i[-2:-1] for u, i in expected.items()}
    assert histories(prepared, "test") == {u: i[-1:] for u, i in expected.items()}
    assert prepared.manifest["counts"]["short_users"] == 2
    assert "fold_in" not in prepared.manifest["splits"]
    mirrored = prepare(write(tmp_path / "plays.csv", rows[::-1]), tmp_path / "p", NEXT)
    assert histories(mirrored, "train", "valid", "test") == in_file_order(rows[::-1])
    hashed = [
        prepare(write(tmp_path / "plays.csv", given), tmp_path / "p", NEXT, "data.order=hash")
        for given in (rows, rows[::-1])
    ]
    assert len({str(one.manifest["fingerprints"]) for one in hashed}) == 1
    assert sum(map(len, histories(hashed[0], "test").values())) == 40


def test_what_comes_last_is_no_part_of_what_is_learned(tmp_path):
    rows = rows_of_sessions()
    expected, seen = in_file_order(rows), ("train", "valid", "fold_in", "ids")

    def prints(given, *changes):
        path = write(tmp_path / "plays.csv", given)
        facts = prepare(path, tmp_path / "p", NEXT, *changes).manifest["fingerprints"]
        return {name: facts[name] for name in seen}, facts["test"]

    def moved(row, first):
        if first <= row.user < 90 and row.item == expected[row.user][-1]:
            return dataclasses.replace(row, item=row.item + 1000, rating=1, time=row.time + 500)
        return row

    for first, *changes in ((0,), (25, "split.cut=0.5")):  # users up to 20 end before the cut
        other = [moved(row, first) for row in rows]
        (before, test), (after, moved_test) = prints(rows, *changes), prints(other, *changes)
        assert before == after
        assert test != moved_test
    late = [dataclasses.replace(row, item=row.item + 2000, time=10**6) for row in rows[:30]]
    cut = prepare(write(tmp_path / "plays.csv", rows), tmp_path / "p", NEXT, "split.cut=0.5")
    first = min(cut.load(name).timestamp.min() for name in ("test", "fold_in"))
    assert cut.load("train").timestamp.max() < first
    assert histories(cut, "train", "fold_in", "valid", "test") == expected
    planted = prints([*rows, *late])[0]["train"]
    assert planted != prints(rows)[0]["train"], "a later row makes the last one a training row"


def test_what_filters_drop_moves_no_place_and_keeps_its_own(tmp_path):
    rows = rows_of_sessions()
    path = write(tmp_path / "plays.csv", rows)
    prepared = prepare(path, tmp_path / "p", NEXT, "data.min_rating=2", "data.core=3")
    kept = [row for row in rows if row.rating >= 2]
    while True:  # items, then users, until nothing goes
        items = [row.item for row in kept]
        left = [row for row in kept if items.count(row.item) >= 3]
        users = [row.user for row in left]
        left = [row for row in left if users.count(row.user) >= 3]
        if len(left) == len(kept):
            break
        kept = left
    assert histories(prepared, "train", "valid", "test") == in_file_order(kept)
    for name in ("train", "valid", "test"):
        rows_of = prepared.load(name)
        assert (rows_of.place >= 0).all()
    known = in_order(interactions_of(prepared)[0])
    items_known = set(prepared.item_ids.raw.tolist())
    everything = {
        user: [item for item in items if item in items_known]
        for user, items in in_file_order(rows).items()
        if user in set(prepared.user_ids.raw.tolist())
    }
    found: dict[int, list[int]] = {}
    for user, item in zip(known.user.tolist(), known.item.tolist(), strict=True):
        raw = prepared.user_ids.raw[user], prepared.item_ids.raw[item]
        found.setdefault(int(raw[0]), []).append(int(raw[1]))
    assert found == everything


def test_of_repeated_ratings_the_last_one_gives_the_place(tmp_path):
    again = [Row(1, 7, 3, 5), Row(1, 8, 3, 5), Row(1, 7, 4, 5), Row(1, 9, 3, 4), Row(2, 9, 1, 1)]
    for how in ("last", "mean", "max"):
        path = write(tmp_path / "plays.csv", again)
        prepared = prepare(path, tmp_path / "p", NEXT, f"data.duplicates={how}")
        assert histories(prepared, "train", "valid", "test")[1] == [9, 8, 7]


def test_without_times_the_order_of_the_file_must_be_asked_for(tmp_path):
    rows = rows_of_sessions()
    path = write(tmp_path / "plays.csv", rows, times=False)
    with pytest.raises(RecrayError) as refused:
        prepare(path, tmp_path / "p", NEXT)
    assert "--columns timestamp=NAME" in str(refused.value)
    assert "--set data.order=file" in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(RecrayError, match=r"leave split\.cut out"):
        prepare(path, tmp_path / "p", NEXT, "data.order=file", "split.cut=0.9")
    with pytest.raises(RecrayError, match=r"goes with split\.kind=next, not random"):
        prepare(path, tmp_path / "p", "split.kind=random", "split.cut=0.9")
    with pytest.raises(RecrayError, match=r"data\.half_life=30 needs the times .* plays has none"):
        prepare(path, tmp_path / "p", "data.half_life=30")
    prepared = prepare(path, tmp_path / "p", NEXT, "data.order=file")
    untimed = in_file_order([dataclasses.replace(row, time=0) for row in rows])
    assert histories(prepared, "train", "valid", "test") == untimed
    assert histories(prepared, "test")[5] == untimed[5][-1:]
