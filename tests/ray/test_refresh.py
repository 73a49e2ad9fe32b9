"""What was rated while a model served is trained on, and compared before it serves."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from recray.cli import cli
from recray.data import sample
from recray.data.feedback_events import LoggedRating
from recray.data.feedback_log import LogWriter, RatingsLog
from recray.inference.bundle import Bundle
from recray.serving.registry import Registry
from recray.training.warm_start import grown

pytestmark = pytest.mark.usefixtures("ray_session")

LATER_USERS = 540
"""Users from here on are in the log alone."""


def recray(*arguments, status=0):
    done = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == status, done.stderr
    return json.loads(done.stdout) if status == 0 else done.stderr


@pytest.fixture(scope="module")
def shop(ray_session, tmp_path_factory):
    """A registry whose live version knows a part of the sample; the log has the rest."""
    folder = tmp_path_factory.mktemp("refresh")
    files = sample.files()
    source = folder / "shop"
    source.mkdir()
    (source / "movies.csv").write_bytes(files["movies.csv"])
    head, *lines = files["ratings.csv"].decode().splitlines()
    rows = [line.split(",") for line in lines]
    later = [int(u) > LATER_USERS or (int(u) * 31 + int(i)) % 5 == 0 for u, i, _, _ in rows]
    kept = [line for line, late in zip(lines, later, strict=True) if not late]
    (source / "ratings.csv").write_text("\n".join([head, *kept]) + "\n")
    changes = ["--set", "train.epochs=6", "--set", "model.dim=16"]
    recray("prepare", source, "--out", folder / "p")
    recray("train", folder / "p", "--out", folder / "r", *changes)
    made = recray("export", folder / "r", "--out", folder / "b")
    registry = Registry(str(folder / "registry"))
    registry.promote(registry.add(str(folder / "b")))
    log = RatingsLog.of(f"{registry.folder}/ratings", "shop", (False, False))
    ratings = [
        LoggedRating(int(u), int(i), float(r), f"{u}-{i}", int(t) * 1_000_000)
        for (u, i, r, t), late in zip(rows, later, strict=True)
        if late
    ]
    first = Bundle.open(str(folder / "b"))
    # One film of the hold-out is rated again: it stays in the hold-out.
    pair = first.user_ids.raw[first.holdout.user[0]], first.item_ids.raw[first.holdout.item[0]]
    ratings.append(LoggedRating(int(pair[0]), int(pair[1]), 0.5, "again", 2_000_000_000_000_000))
    LogWriter(log).append(ratings)
    return folder, source, made["version"], len(ratings)


@pytest.fixture(scope="module")
def refreshed(shop):
    folder, source, _, _ = shop
    return recray("refresh", folder / "registry", source, "--out", folder / "new")


def test_a_refresh_compares_and_promotes_what_is_better(shop, refreshed):
    folder, _, before, ratings = shop
    assert refreshed["before"] == before
    assert refreshed["log"]["ratings"] == ratings
    gain = refreshed["gain"]
    assert gain["low"] < gain["value"] < gain["high"]
    assert refreshed["against_full"]["metric"] == "ndcg@10"
    assert refreshed["saved"]["full_epochs"] >= 1
    assert Registry(str(folder / "registry")).pointer()[0] == refreshed["version"] != before


def test_the_log_never_changes_the_hold_out(shop, refreshed):
    folder, _, _, _ = shop
    old, new = (Bundle.open(str(folder / name)) for name in ("b", "new/warm/bundle"))

    def pairs(bundle, ratings):
        return set(zip(bundle.user_ids.raw[ratings.user].tolist(),
                       bundle.item_ids.raw[ratings.item].tolist(), strict=True))  # fmt: skip

    assert pairs(old, old.holdout) == pairs(new, new.holdout)
    assert pairs(old, old.interactions.before_test) < pairs(new, new.interactions.before_test)
    assert new.user_ids.known > old.user_ids.known
    again = new.user_ids.encode(old.user_ids.raw[old.holdout.user[:1]])[0]
    item = new.item_ids.encode(old.item_ids.raw[old.holdout.item[:1]])[0]
    row = (new.holdout.user == again) & (new.holdout.item == item)
    assert new.holdout.rating[row].tolist() == [0.5]


def test_known_rows_are_kept_and_new_users_folded_in(shop, refreshed):
    from recray.data.dataset import Prepared

    folder, _, _, _ = shop
    old, prepared = Bundle.open(str(folder / "b")), Prepared.open(str(folder / "new/prepared"))
    weights = grown(old, prepared)
    user = weights["user_vectors.weight"].numpy()
    before = old.model.state_dict()["user_vectors.weight"].numpy()
    place = prepared.user_ids.encode(old.user_ids.raw[: old.user_ids.known])
    assert np.array_equal(user[place], before)
    new = np.setdiff1d(np.arange(prepared.users), place)
    assert len(new) > 10
    assert len(np.unique(user[new].round(6), axis=0)) == len(new), "each by their own ratings"


def test_prepare_reads_the_log_and_says_what_it_left_out(shop, tmp_path):
    folder, source, _, ratings = shop
    log = RatingsLog.open(str(folder / "registry/ratings"))
    bad = f"{'a' * 12}/part-0-000000000.parquet"
    log.folder.write_bytes(bad, b"PAR1 cut short")
    try:
        done = CliRunner().invoke(
            cli,
            [
                "prepare",
                str(source),
                "--out",
                str(tmp_path / "p"),
                "--ratings-log",
                str(log.folder),
            ],
        )
    finally:
        log.folder.delete(bad)
    assert done.exit_code == 0
    assert f"{ratings:,} ratings" in done.stderr
    assert "1 damaged parts left out" in done.stderr


def test_logs_of_other_data_are_refused(shop, tmp_path):
    _, source, _, _ = shop
    out = tmp_path / "p"
    RatingsLog.of(str(tmp_path / "other"), "elsewhere", (False, False))
    said = recray("prepare", source, "--out", out, "--ratings-log", tmp_path / "other", status=2)
    assert "holds ratings of elsewhere, not of shop" in said
    strange = RatingsLog.of(str(tmp_path / "strange"), "shop", (False, False))
    LogWriter(strange).append([LoggedRating(1, 999_999, 4.0, "k", 1)])
    said = recray("prepare", source, "--out", out, "--ratings-log", tmp_path / "strange", status=2)
    assert "none of an item of shop" in said
    said = recray("prepare", source, "--out", out, "--ratings-log", tmp_path / "none", status=2)
    assert "no ratings log at" in said
    assert not out.exists()
