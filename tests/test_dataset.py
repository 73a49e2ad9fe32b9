"""The prepared data set: what each fit knows, and which rows it learns from."""

import pytest

from tests.conftest import ITEMS, USERS, rows_of_splits


@pytest.mark.parametrize(
    ("fit_on", "splits", "users", "items"),
    [
        ("train", ["train"], USERS, ITEMS),
        ("train+valid", ["train", "valid"], USERS + 1, ITEMS),
        ("all", ["train", "valid", "test"], USERS + 2, ITEMS + 1),
    ],
)
def test_a_fit_learns_every_row_of_its_splits(prepared, fit_on, splits, users, items):
    fit, rows = prepared.fit(fit_on), prepared.load_fit(fit_on)
    assert (fit.users, fit.items) == (users, items)
    expected = sorted((u, i) for split in splits for u, i, *_ in rows_of_splits()[split])
    assert sorted(zip(rows.user.tolist(), rows.item.tolist(), strict=True)) == expected
    assert rows.user.max() == users - 1
    assert rows.item.max() == items - 1


def test_a_fit_of_data_that_an_earlier_version_prepared_knows_those_of_training(prepared):
    del prepared.manifest["fits"]
    assert prepared.fit("train+valid")[:2] == (USERS, ITEMS)
    assert prepared.load_fit("train+valid").user.max() == USERS - 1
    assert prepared.fit("all")[:2] == (USERS + 2, ITEMS + 1)


def test_only_the_fingerprint_of_a_fit_on_all_depends_on_test(prepared):
    before = [prepared.fingerprint_of(fit_on) for fit_on in ("train", "train+valid", "all")]
    prepared.manifest["fingerprints"]["test"] = "other" * 8
    after = [prepared.fingerprint_of(fit_on) for fit_on in ("train", "train+valid", "all")]
    assert [b == a for b, a in zip(before, after, strict=True)] == [True, True, False]
