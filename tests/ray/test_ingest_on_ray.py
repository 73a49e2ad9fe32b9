"""The three maps of ingest on Ray Data."""

import hashlib
import json
import zipfile
from collections import Counter

import numpy as np
import pytest

from recray.config import load_settings
from recray.data import ingest, sample, source
from recray.data.dataset import Prepared, Ratings, part_name
from recray.data.feedback import with_log
from recray.data.feedback_events import LoggedRating
from recray.data.feedback_log import LogWriter, RatingsLog
from recray.data.formats import text
from recray.errors import RecrayError
from recray.schema import UNKNOWN_TIME
from tests.in_process import InProcess

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def sample_folder(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for name, content in sample.files().items():
        (folder / name).write_bytes(content)
    return folder


def data_hash(prepared: Prepared) -> str:
    """Hash of every data file by name and bytes."""
    files = [f for f in prepared.manifest["files"] if f["name"].endswith(".parquet")]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def test_the_bytes_do_not_depend_on_the_number_of_blocks(sample_folder, tmp_path, monkeypatch):
    settings, hashes = load_settings(), set()
    for range_bytes in (64 << 20, 700_000, 200_000):
        monkeypatch.setattr(text, "RANGE_BYTES", range_bytes)
        given = source.detect_source(str(sample_folder))
        hashes.add(data_hash(ingest.prepare(given, str(tmp_path / f"p{range_bytes}"), settings)))
    assert len(hashes) == 1


def test_what_filters_drop_stays_known_whatever_the_number_of_blocks(
    sample_folder, tmp_path, monkeypatch
):
    settings, hashes = load_settings("ranking", None, ["data.min_rating=3", "data.core=20"]), set()
    given = source.detect_source(str(sample_folder))
    whole = ingest.prepare(given, str(tmp_path / "whole"), load_settings())
    for range_bytes in (64 << 20, 200_000):
        monkeypatch.setattr(text, "RANGE_BYTES", range_bytes)
        given = source.detect_source(str(sample_folder))
        prepared = ingest.prepare(given, str(tmp_path / f"p{range_bytes}"), settings)
        hashes.add(data_hash(prepared))
    assert len(hashes) == 1
    assert whole.manifest["counts"]["filtered"] == len(whole.load_known()) == 0

    def pairs(data, *parts):
        rows = Ratings.concatenate([data.load(p) for p in parts] or [data.load_known()])
        user, item = data.user_ids.raw[rows.user], data.item_ids.raw[rows.item]
        return set(zip(user.tolist(), item.tolist(), strict=True))

    every, filtered = pairs(whole, "train", "valid", "test"), pairs(prepared)
    users, items = set(prepared.user_ids.raw.tolist()), set(prepared.item_ids.raw.tolist())
    assert prepared.manifest["counts"]["filtered"] == len(filtered) > 100
    assert prepared.load_known().rating.min() < 3
    kept = pairs(prepared, "train", "valid", "test")
    assert not filtered & kept
    assert filtered | kept == {
        (user, item) for user, item in every if user in users and item in items
    }


def test_the_bytes_do_not_depend_on_the_order_of_rows(sample_folder, tmp_path):
    settings = load_settings()
    first = ingest.prepare(source.detect_source(str(sample_folder)), str(tmp_path / "a"), settings)
    path = sample_folder / "ratings.csv"
    header, *rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + b"".join(reversed(rows)))
    second = ingest.prepare(source.detect_source(str(sample_folder)), str(tmp_path / "b"), settings)
    assert data_hash(first) == data_hash(second)


class Again(InProcess):
    """Does all tasks of a stage twice, as where results of the first time were lost."""

    def map(self, *given, **shared):
        super().map(*given, **shared)
        return super().map(*given, **shared)

    def read(self, *given):
        super().read(*given)
        return super().read(*given)

    def write(self, *given, **shared):
        super().write(*given, **shared)
        return super().write(*given, **shared)


@pytest.mark.parametrize(
    "changes",
    [["data.core=20", "data.min_rating=2"], ["split.kind=per-item-random"], ["split.kind=next"]],
)
def test_tasks_that_are_done_again_write_the_same_bytes(sample_folder, tmp_path, changes):
    settings = load_settings(None, None, changes)
    log = RatingsLog.of(str(tmp_path / "log"), "own", (False, False))
    events = [LoggedRating(1, item, 4.0, str(item), item * 10**6) for item in range(1, 40)]
    LogWriter(log).append(events)
    given, _ = with_log(source.detect_source(str(sample_folder)), log, settings.data.duplicates)
    found = [
        ingest.prepare(given, str(tmp_path / name), settings, runner=runner).manifest
        for name, runner in (("once", InProcess()), ("again", Again()))
    ]
    assert found[0]["fingerprints"] == found[1]["fingerprints"]
    assert found[0]["files"] == found[1]["files"]


def test_every_row_of_a_user_is_in_one_part_and_no_row_is_lost(sample_folder, tmp_path):
    given = source.detect_source(str(sample_folder))
    prepared = ingest.prepare(given, str(tmp_path / "p"), load_settings())
    homes: dict[int, int] = {}
    total = 0
    for part in range(prepared.buckets):
        for split in ("train", "valid", "test"):
            rows = prepared.load(split, [part])
            total += len(rows)
            for user in set(rows.user.tolist()):
                assert homes.setdefault(user, part) == part
    assert total == prepared.manifest["rows_read"]


def test_bad_rows_are_counted_by_reason_with_their_place(sample_folder, tmp_path):
    path = sample_folder / "ratings.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = b"1,5,nan,3\r\n"
    lines[100] = b"1,5\r\n"
    lines[101] = b"1,,3,3\r\n"
    path.write_bytes(b"".join(lines))
    prepared = ingest.prepare(
        source.detect_source(str(sample_folder)), str(tmp_path / "p"), load_settings()
    )
    assert prepared.manifest["rejected"] == {
        "rows": 3,
        "reasons": {"missing column": 1, "rating is not finite": 1, "item is empty": 1},
    }
    rejected = prepared.folder.read_table("rejected.parquet").to_pylist()
    assert [r["line"] for r in rejected] == [4, 101, 102]
    assert rejected[1]["byte"] == sum(len(line) for line in lines[:100])


def test_too_many_bad_rows_fail_and_leave_nothing(sample_folder, tmp_path):
    path = sample_folder / "ratings.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], *(b"x" + line for line in lines[1:1000]), *lines[1000:]]))
    settings = load_settings("ranking", None, ["data.ids=integer"])
    with pytest.raises(RecrayError, match=r"max_rejected=0\.01") as failure:
        ingest.prepare(
            source.detect_source(str(sample_folder), settings), str(tmp_path / "p"), settings
        )
    assert "--set data.ids=text" in str(failure.value)
    assert "line 2 user is not a number" in str(failure.value)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["own"]


def test_a_split_by_time_needs_times(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text(
        "userId,movieId,rating\n" + "".join(f"{u},{i},4\n" for u in range(9) for i in range(9))
    )
    settings = load_settings("ranking", None, ["split.kind=leave-one-out"])
    with pytest.raises(RecrayError, match="needs timestamps"):
        ingest.prepare(source.detect_source(str(path)), str(tmp_path / "p"), settings)


def test_ml_1m_has_the_same_bytes_from_an_archive_and_from_any_number_of_pieces(
    movielens, tmp_path, monkeypatch
):
    archive = movielens / "ml-1m-no-timestamps.zip"
    prepared = ingest.prepare(
        source.detect_source(str(archive)), str(tmp_path / "a"), load_settings()
    )
    assert prepared.manifest["counts"]["ratings"] == 1_000_209
    with zipfile.ZipFile(archive) as opened:
        for name in ("ratings.dat", "movies.dat", "users.dat"):
            (tmp_path / name).write_bytes(opened.read(f"ml-1m/{name}"))
    for range_bytes in (20_000_000, 3_000_001):
        monkeypatch.setattr(text, "RANGE_BYTES", range_bytes)
        given = source.detect_source(str(tmp_path))
        again = ingest.prepare(given, str(tmp_path / f"p{range_bytes}"), load_settings())
        assert data_hash(again) == data_hash(prepared)


def test_two_sets_of_the_seed_systems_are_exact(movielens, tmp_path):
    small = source.detect_source(str(movielens / "ml-latest-small.zip"))
    settings = load_settings("mf-normalised")
    counts = ingest.prepare(small, str(tmp_path / "small"), settings).manifest["counts"]
    assert counts["items"] + counts["unseen_items"] == 4778
    assert counts["users"] + counts["unseen_users"] == 443
    assert counts["ratings"] == 39_253

    hundred = source.detect_source(str(movielens / "ml-100k.zip"))
    settings = load_settings("ranking", None, ["data.merge_titles=true"])
    manifest = ingest.prepare(hundred, str(tmp_path / "100k"), settings).manifest
    assert manifest["counts"]["items"] + manifest["counts"]["unseen_items"] == 1664
    assert manifest["counts"]["ratings"] == 99_693
    assert len(manifest["ratings"]["levels"]) == 9


@pytest.mark.parametrize(
    "kind", ["per-item-random", "per-user-ratio", "leave-one-out", "temporal", "kfold"]
)
def test_every_split_is_the_same_for_any_number_of_pieces(
    sample_folder, tmp_path, monkeypatch, kind
):
    settings, hashes = load_settings("ranking", None, [f"split.kind={kind}"]), set()
    for range_bytes in (64 << 20, 300_000):
        monkeypatch.setattr(text, "RANGE_BYTES", range_bytes)
        given = source.detect_source(str(sample_folder))
        prepared = ingest.prepare(given, str(tmp_path / f"p{range_bytes}"), settings)
        hashes.add(data_hash(prepared))
        rows = {name: s["rows"] for name, s in prepared.manifest["splits"].items()}
        assert sum(rows.values()) == prepared.manifest["rows_read"]
        assert min(rows.values()) >= 590
    assert len(hashes) == 1


def test_nothing_before_the_cut_is_in_the_test_of_a_temporal_split(sample_folder, tmp_path):
    settings = load_settings("ranking", None, ["split.kind=temporal"])
    prepared = ingest.prepare(
        source.detect_source(str(sample_folder)), str(tmp_path / "p"), settings
    )
    train, valid, test = (prepared.load(name).timestamp for name in ("train", "valid", "test"))
    assert train.max() < valid.min() <= valid.max() < test.min()
    total = len(train) + len(valid) + len(test)
    assert len(test) / total == pytest.approx(0.1, abs=0.001)
    assert len(valid) / total == pytest.approx(0.1, abs=0.001)


def test_each_item_gives_its_share_in_a_per_item_split(sample_folder, tmp_path):
    settings = load_settings("ranking", None, ["split.kind=per-item-random"])
    prepared = ingest.prepare(
        source.detect_source(str(sample_folder)), str(tmp_path / "p"), settings
    )
    counts = {
        name: np.bincount(prepared.load(name).item, minlength=prepared.items)
        for name in ("train", "valid", "test")
    }
    total = sum(counts.values())
    assert counts["test"].tolist() == np.minimum(np.floor(total * 0.1 + 0.5), total - 1).tolist()
    assert counts["train"].min() >= 1


def test_a_core_leaves_only_users_and_items_with_enough_ratings(sample_folder, tmp_path):
    lines = (sample_folder / "ratings.csv").read_text().splitlines()[1:]
    pairs = {tuple(line.split(",")[:2]) for line in lines}
    while True:  # the definition, one drop at a time
        users, items = (Counter(column) for column in zip(*pairs, strict=True))
        kept = {p for p in pairs if users[p[0]] >= 40 and items[p[1]] >= 40}
        if kept == pairs:
            break
        pairs = kept
    settings = load_settings("ranking", None, ["data.core=40", "split.valid=0", "split.test=0"])
    prepared = ingest.prepare(
        source.detect_source(str(sample_folder)), str(tmp_path / "p"), settings
    )
    rows = prepared.load("train")
    raw = prepared.user_ids.raw[rows.user], prepared.item_ids.raw[rows.item]
    assert {(str(u), str(i)) for u, i in zip(*raw, strict=True)} == pairs
    assert prepared.manifest["core_rounds"] >= 2


def play_rows() -> list[str]:
    """Users 1 to 30 of items 1 to 10, every pair twice; user u's item u % 10 + 1 has no time."""

    def time(u: int, i: int, again: int) -> int | str:
        return "" if i == u % 10 + 1 else 1_400_000_000 + u + again

    return [
        f"{u},{i},{1 + (u + i + again) % 5},{time(u, i, again)}000"
        for again in (0, 1)
        for u in range(1, 31)
        for i in range(1, 11)
    ]


@pytest.mark.parametrize("kind", ["leave-one-out", "per-user-ratio"])
def test_ratings_of_unknown_time_train_and_their_time_is_null_in_files(tmp_path, kind):
    path = tmp_path / "plays.csv"
    rows = [line.replace(",000", ",soon") for line in play_rows()]
    path.write_text("\n".join(["user,item,rating,time", *rows, "1,1,no,5"]) + "\n")
    settings = load_settings("ranking", None, [f"split.kind={kind}"])
    given = source.detect_source(str(path))
    prepared = ingest.prepare(given, str(tmp_path / "p"), settings)
    facts = prepared.manifest
    assert facts["times"] == {"format": "ms", "unknown": 60}
    assert facts["rows"] == {
        "read": 601,
        "kept": 300,
        "dropped": {"duplicates": 300, "rejected": 1},
    }
    nulls = {
        name: sum(
            prepared.folder.read_table(part_name(name, part))["timestamp"].null_count
            for part in range(prepared.buckets)
        )
        for name in ("train", "valid", "test")
    }
    assert nulls == {"train": 30, "valid": 0, "test": 0}
    train = prepared.load("train")
    first = np.flatnonzero(np.diff(train.user, prepend=-1))
    assert (train.timestamp[first] == UNKNOWN_TIME).all(), "it stands first in each history"
    assert train.timestamp.max() <= 1_400_000_031
    temporal = load_settings("ranking", None, ["split.kind=temporal"])
    with pytest.raises(RecrayError, match=r"30 of 300 ratings \(10\.0%\) have none"):
        ingest.prepare(given, str(tmp_path / "q"), temporal)


def test_data_whose_times_are_0_or_missing_have_no_times(tmp_path):
    rows = [line.rpartition(",")[0] for line in play_rows()]
    hashes = set()
    for n, times in enumerate([["0"], ["", "0", "0.0", "nan"]]):
        path = tmp_path / f"{n}" / "plays.csv"
        path.parent.mkdir()
        lines = [f"{row},{times[k % len(times)]}\n" for k, row in enumerate(rows)]
        path.write_text("user,item,rating,time\n" + "".join(lines))
        given = source.detect_source(str(path))
        prepared = ingest.prepare(given, str(tmp_path / f"p{n}"), load_settings())
        assert not prepared.manifest["timestamps"]
        hashes.add(data_hash(prepared))
    assert len(hashes) == 1
    settings = load_settings("ranking", None, ["split.kind=leave-one-out"])
    with pytest.raises(RecrayError, match="needs timestamps"):
        ingest.prepare(given, str(tmp_path / "q"), settings)


@pytest.mark.parametrize("how", ["mean", "sum", "count", "max"])
def test_every_row_is_kept_or_counted_whatever_repeats_become(tmp_path, how):
    lines, hashes = [*play_rows(), "1,1,nan,1", "77,1,5,1400000000000"], set()
    merged: dict[tuple[int, int], list[float]] = {}
    for line in [*lines[:-2], lines[-1]]:
        user, item, rating, _ = line.split(",")
        merged.setdefault((int(user), int(item)), []).append(float(rating))
    rule = {"mean": np.mean, "sum": sum, "count": len, "max": max}[how]
    value = {pair: float(rule(given)) for pair, given in merged.items()}
    low = {pair for pair, rating in value.items() if rating < 2}
    for n, rows in enumerate((lines, lines[::-1])):
        path = tmp_path / f"{n}.csv"
        path.write_text("\n".join(["user,item,rating,time", *rows]) + "\n")
        changes = [f"data.duplicates={how}", "data.min_rating=2", "data.core=2"]
        settings = load_settings("ranking", None, changes)
        given = source.detect_source(str(path))
        prepared = ingest.prepare(given, str(tmp_path / f"p{n}"), settings)
        hashes.add(json.dumps(prepared.manifest["fingerprints"]))
        rows = Ratings.concatenate([prepared.load(name) for name in ("train", "valid", "test")])
        raw = prepared.user_ids.raw[rows.user], prepared.item_ids.raw[rows.item]
        found = dict(zip(zip(*(r.tolist() for r in raw), strict=True), rows.rating, strict=True))
        assert found == {pair: value[pair] for pair in found}
        assert found.keys() == value.keys() - low - {(77, 1)}
        dropped = prepared.manifest["rows"]["dropped"]
        rejected, twice, rare = (dropped.get(k, 0) for k in ("rejected", "duplicates", "core"))
        assert (rejected, twice, dropped.get("min_rating", 0)) == (1, 300, len(low))
        assert rare == len(value) - len(low) - len(found)
        known = prepared.load_known()
        kept_known = set(
            zip(
                prepared.user_ids.raw[known.user].tolist(),
                prepared.item_ids.raw[known.item].tolist(),
                strict=True,
            )
        )
        assert kept_known == {pair for pair in low if pair[0] != 77}, "what a filter drops is seen"
    assert len(hashes) == 1
