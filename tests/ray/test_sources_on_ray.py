"""Whole ingest of the user's own files: bad rows, text ids, given splits and held-out users."""

import csv
import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recray.config import load_settings
from recray.data import ingest, source
from recray.data.formats import text
from recray.data.ids import id_hash
from recray.data.split import SLOTS, slot_of
from recray.errors import RecrayError

pytestmark = pytest.mark.usefixtures("ray_session")

GOOD = 99_000


def prepare(path, out, *overrides):
    settings = load_settings("ranking", None, overrides)
    return ingest.prepare(source.detect_source(str(path), settings), str(out), settings)


def planted():
    """100,000 rows of which 900 are bad and 100 repeat another; reasons and their counts."""
    rng = np.random.default_rng(5)
    pair = rng.choice(2000 * 3000, GOOD, replace=False)
    stars = rng.integers(1, 11, GOOD) / 2
    lines = [
        f"{1 + p // 3000},{1 + p % 3000},{s},{10**9 + n}\n".encode()
        for n, (p, s) in enumerate(zip(pair.tolist(), stars.tolist(), strict=True))
    ]
    bad = {
        "missing column": [b"7,8,3\n"] * 100,
        "rating is not a number": [b"7,8,good,1\n"] * 100,
        "rating is not finite": [b"7,8,NaN,1\n"] * 100,
        "user is negative": [b"-7,8,3,1\n"] * 50,
        "item is empty": [b"7,,3,1\n"] * 50,
        "rating outside the scale": [b"7,8,5.5,1\n"] * 100,
        "item is too large": [b"7,99999999999999999999,3,1\n"] * 100,
        "NUL byte": [b"7,8,3\x00,1\n"] * 150,
        "not UTF-8": [b"7,8,3,1\xe9\n"] * 150,
    }
    repeated = [lines[n].replace(b"\n", b"\r\n") for n in range(0, 100 * 37, 37)]
    crlf = set(range(50, 5000, 50))
    lines = [line.replace(b"\n", b"\r\n") if n in crlf else line for n, line in enumerate(lines)]
    lines += repeated + [line for group in bad.values() for line in group]
    order = np.concatenate([[0], 1 + rng.permutation(len(lines) - 1)])
    header = b"\xef\xbb\xbfuserId,movieId,rating,timestamp\r\n"
    reasons = {reason: len(group) for reason, group in bad.items()}
    return header + b"".join(lines[n] for n in order), reasons


def test_of_100_000_rows_every_bad_one_is_counted_by_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "RANGE_BYTES", 500_000)
    content, reasons = planted()
    path = tmp_path / "ratings.csv"
    path.write_bytes(content)
    prepared = prepare(path, tmp_path / "p", "data.ids=integer", "data.scale=0.5,5")
    facts = prepared.manifest
    assert facts["rejected"] == {"rows": 900, "reasons": dict(sorted(reasons.items()))}
    assert facts["rows_read"] == GOOD + 100
    assert facts["counts"]["duplicates"] == 100
    assert facts["counts"]["ratings"] == GOOD
    kept = prepared.folder.read_table("rejected.parquet").to_pylist()
    assert len(kept) == 900
    lines = content.split(b"\n")
    for row in kept:
        there = content[row["byte"] :].split(b"\n", 1)[0].rstrip(b"\r")
        assert there == lines[row["line"] - 1].rstrip(b"\r")
        assert there.decode("utf-8", errors="replace") == row["text"]


def test_too_many_bad_rows_fail_with_the_first_of_them(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_bytes(planted()[0])
    rules = ("data.max_rejected=0.008", "data.ids=integer", "data.scale=0.5,5")
    with pytest.raises(RecrayError, match=r"900 of 100,000 rows cannot be read, more than data"):
        prepare(path, tmp_path / "p", *rules)
    assert not (tmp_path / "p").exists()


def text_rows():
    rng = np.random.default_rng(1)
    user = [f"user {n:03d}" for n in rng.integers(0, 200, 5000)]
    item = [f'{n:x}-é, "x"\nuser 1,{n},5\n' for n in rng.integers(0, 300, 5000)]
    return user, item, rng.integers(1, 6, 5000).tolist()


def test_text_ids_give_the_same_bytes_from_any_pieces_and_from_parquet(tmp_path, monkeypatch):
    user, item, rating = text_rows()
    own = tmp_path / "own.csv"
    with own.open("w", newline="") as file:
        csv.writer(file).writerows([("user", "item", "rating"), *zip(user, item, rating)])  # noqa: B905
    parquet = tmp_path / "own.parquet"
    columns = {"user": user, "item": item, "rating": rating}
    pq.write_table(pa.table(columns), parquet, row_group_size=700)
    hashes = set()
    for n, (path, range_bytes) in enumerate([(own, 64 << 20), (own, 7_000), (parquet, 0)]):
        monkeypatch.setattr(text, "RANGE_BYTES", range_bytes)
        prepared = prepare(path, tmp_path / f"p{n}")
        files = [f for f in prepared.manifest["files"] if f["name"].endswith(".parquet")]
        hashes.add(hashlib.sha256(json.dumps(files).encode()).hexdigest())
    assert len(hashes) == 1
    ids = prepared.user_ids
    known = ids.raw[: ids.known]
    by_partition = slot_of(id_hash(pa.array(known))).astype(int) * prepared.buckets // SLOTS
    assert known.tolist() == known[np.lexsort((known, by_partition))].tolist()
    found = {
        (ids.raw[u], prepared.item_ids.raw[i], r)
        for part in ("train", "valid", "test")
        for rows_of in [prepared.load(part)]
        for u, i, r in zip(rows_of.user, rows_of.item, rows_of.rating.tolist(), strict=True)
    }
    assert found <= set(zip(user, item, map(float, rating), strict=True))
    assert len(found) == prepared.manifest["counts"]["ratings"] == len(set(zip(user, item)))  # noqa: B905


def test_a_given_split_is_kept_row_by_row(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    header = "user,item,rating\n"
    train = [f"{n % 50},{n},{1 + n % 5}\n" for n in range(1000)]
    test = [f"{n % 60},{n},{1 + n % 5}\n" for n in range(1000, 1300)]
    (folder / "train.csv").write_text(header + "".join(train))
    (folder / "test.csv").write_text(header + "".join(test))
    given = ["split.kind=given", "split.train_file=train.csv", "split.test_file=test.csv"]
    prepared = prepare(folder, tmp_path / "p", *given, "split.valid=0.2")
    items = {
        name: set(prepared.item_ids.raw[prepared.load(name).item].tolist())
        for name in ("train", "valid", "test")
    }
    assert items["train"] | items["valid"] == set(range(1000))
    assert items["test"] == set(range(1000, 1300))
    assert len(items["valid"]) == pytest.approx(200, abs=40)
    assert prepared.manifest["counts"]["unseen_users"] == 10

    (folder / "test.csv").write_text(header + test[0] + train[7] + train[8])
    with pytest.raises(RecrayError, match=r"2 pairs of user and item are both in train.csv and"):
        prepare(folder, tmp_path / "q", *given)


def test_held_out_users_are_in_no_training_row_and_known_by_what_is_folded_in(tmp_path):
    prepared = prepare("sample", tmp_path / "p", "split.kind=held-out-users", "split.fold_in=10")
    train, test, known = (prepared.load(name) for name in ("train", "test", "fold_in"))
    assert train.user.max() == prepared.users - 1
    assert test.user.min() >= prepared.users
    assert set(test.user) <= set(known.user)
    assert set(np.unique(known.user, return_counts=True)[1].tolist()) == {10}
    pairs = [set(zip(r.user.tolist(), r.item.tolist(), strict=True)) for r in (test, known)]
    assert not pairs[0] & pairs[1]
    assert prepared.manifest["splits"]["test"]["unseen_percent"] == 100
