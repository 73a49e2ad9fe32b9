"""Raw ids and dense ids."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recray.data.ids import (
    ID_LIMIT,
    CountedItems,
    IdMap,
    TextIds,
    UserNumbers,
    id_hash,
    order_of_ids,
)
from recray.errors import RecrayError

flagged = st.dictionaries(st.integers(0, 2**62), st.booleans(), max_size=30)


def build(ids: dict[int, bool] | dict[str, bool], kind: type = np.int64) -> IdMap:
    raw, in_training = np.array(list(ids), kind), np.array(list(ids.values()), bool)
    return IdMap(raw[order_of_ids(raw, np.where(in_training, 0, 1))], int(in_training.sum()))


def test_training_ids_come_first_and_ascending():
    ids = build({50: True, 7: False, 3: True, 99: False, 20: True})
    assert ids.raw.tolist() == [3, 20, 50, 7, 99]
    assert ids.known == 3
    assert ids.encode(np.array([3, 20, 50, 7, 99])).tolist() == [0, 1, 2, 3, 4]


def test_three_groups_of_ids_are_found_wherever_they_lie():
    raw, group = np.array([9, 4, 7, 1, 8, 2]), np.array([2, 1, 0, 0, 1, 2])
    ids = IdMap(raw[order_of_ids(raw, group)], 2)
    assert ids.raw.tolist() == [1, 7, 4, 8, 2, 9]
    assert [ids.encode_one(int(i)) for i in ids.raw] == ids.encode(ids.raw).tolist()
    assert ids.encode(ids.raw).tolist() == list(range(6))
    assert ids.encode(np.array([0, 3, 10])).tolist() == [-1, -1, -1]


@given(flagged)
def test_encoding_is_a_bijection_with_training_ids_first(ids):
    made = build(ids)
    assert len(made) == len(ids)
    dense = made.encode(made.raw)
    assert dense.dtype == np.int32
    assert dense.tolist() == list(range(len(ids)))
    assert made.raw.tolist() == sorted(ids, key=lambda raw: (not ids[raw], raw))


@given(flagged, st.lists(st.integers(0, 2**62)))
def test_ids_of_no_split_become_minus_one(ids, asked):
    made = build(ids)
    strangers = [raw for raw in asked if raw not in ids]
    assert (made.encode(np.array(strangers, np.int64)) == -1).all()


def test_an_id_map_does_not_depend_on_the_order_it_was_given():
    one, two = build({5: True, 2: False, 9: True}), build({9: True, 5: True, 2: False})
    assert one.raw.tolist() == two.raw.tolist()
    assert one.known == two.known


def test_one_id_encodes_alone():
    made = build({5: True, 2: False})
    assert [made.encode_one(raw) for raw in (5, 2, 3, 6)] == [0, 1, -1, -1]


# -------------------------------------------------------------------------------------- text

texts = st.dictionaries(st.text(min_size=1, max_size=6), st.booleans(), max_size=20)


def build_text(ids: dict[str, bool]) -> IdMap:
    return build(ids, object)


@given(texts)
def test_text_ids_ascend_by_code_point_with_training_first(ids):
    made = build_text(ids)
    assert made.raw.tolist() == sorted(ids, key=lambda raw: (not ids[raw], raw))
    assert [made.encode_one(raw) for raw in made.raw] == list(range(len(ids)))


def test_numbers_and_text_are_never_each_other():
    numbers, words = build({7: True}), build_text({"7": True})
    assert (numbers.encode_one("7"), words.encode_one(7)) == (-1, -1)
    assert (numbers.encode_one(numbers.parse("7")), words.encode_one(words.parse("7"))) == (0, 0)
    assert numbers.encode(np.array(["7"], object)).tolist() == [-1]


@pytest.mark.parametrize("written", ["x", "", "-1", "1.5", "9" * 19])
def test_what_is_written_for_a_number_must_be_one(written):
    with pytest.raises(KeyError):
        build({7: True}).parse(written)


def test_keys_of_text_are_stable_and_those_of_numbers_are_themselves():
    assert id_hash(pa.array([5, 2])).tolist() == [5, 2]
    key = id_hash(pa.array(["ann", "bob", "ann"]))
    assert key.tolist() == [key[0], key[1], key[0]]
    assert 0 <= key.min() <= key.max() < ID_LIMIT
    assert key[:2].tolist() == [203920426015911114, 374657433658891730]


def test_texts_come_back_from_their_keys():
    pairs = pa.table({"key": id_hash(pa.array(["b", "a", "b"])), "text": ["b", "a", "b"]})
    made = TextIds.join([pairs, pairs.slice(1)])
    assert made.of(pairs["key"].to_numpy()).tolist() == ["b", "a", "b"]


def test_two_texts_with_one_key_are_refused():
    with pytest.raises(RecrayError, match="have one hash"):
        TextIds.join([pa.table({"key": [1, 1], "text": ["a", "b"]})])


def test_users_are_numbered_by_group_then_partition_then_raw_id():
    groups = np.array([[2, 0, 1], [1, 1, 0], [0, 0, 2]])  # of three partitions
    numbers = UserNumbers.of(groups)
    assert numbers.num_train == 3
    assert numbers.first.tolist() == [[0, 3, 4], [2, 3, 5], [3, 4, 5]]
    first = numbers.of_partition(
        0, np.array([10, 20, 30]), np.array(["z", "a", "b"], object), np.array([0, 2, 0])
    )
    assert (first.dense.tolist(), first.num_train) == ([1, 4, 0], 3)
    second = numbers.of_partition(1, np.array([5, 6]), np.array([5, 6]), np.array([1, 0]))
    assert second.dense.tolist() == [3, 2]


def test_items_of_partitions_are_merged_and_numbered_by_raw_id():
    def counted(*rows):
        columns = zip(*rows, strict=True)
        names = ["raw", "train", "valid", "test", "fold_in"]
        return pa.table([pa.array(column, pa.int64()) for column in columns], names)

    made = CountedItems.join(
        iter(
            [counted((4, 0, 1, 0, 0), (9, 2, 0, 0, 0)), counted((1, 1, 0, 0, 0), (4, 0, 0, 3, 0))]
        ),
        None,
    )
    assert made.ids.raw.tolist() == [1, 9, 4]
    assert made.counts.tolist() == [[1, 2, 0], [0, 0, 1], [0, 0, 3], [0, 0, 0]]
    assert (made.groups.tolist(), made.ids.known) == ([2, 1, 0], 2)
    assert made.dense.of(np.array([1, 4, 9])).tolist() == [0, 2, 1]
