"""Raw ids and dense ids."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recray.data.ids import IdMap

flagged = st.dictionaries(st.integers(0, 2**62), st.booleans(), max_size=30)


def build(ids: dict[int, bool]) -> IdMap:
    return IdMap.build(np.array(list(ids), np.int64), np.array(list(ids.values()), bool))


def test_training_ids_come_first_and_ascending():
    ids = build({50: True, 7: False, 3: True, 99: False, 20: True})
    assert ids.raw.tolist() == [3, 20, 50, 7, 99]
    assert ids.known == 3
    assert ids.encode(np.array([3, 20, 50, 7, 99])).tolist() == [0, 1, 2, 3, 4]


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
