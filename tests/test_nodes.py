"""How many workers there is room for when a group has ended; no Ray is started."""

import pytest
import ray

from recray.runtime import nodes, ray_private
from recray.runtime.nodes import Node


def cluster_of(cpus: dict[str, float]) -> list[Node]:
    return [Node(name, name, {"CPU": count}) for name, count in cpus.items()]


HEAD = {"head": 0.0}
TWO, ONE = HEAD | {"a": 1.0, "b": 1.0}, HEAD | {"b": 1.0}


@pytest.mark.parametrize(
    ("lost", "seen", "expected", "looks"),
    [
        (False, [(TWO, 0), (TWO, 1), (TWO, 2)], 2, 3),  # until Ray counts as free what is free
        (False, [(ONE, 0), (ONE, 1)], 1, 2),  # a node with notice does not count: nothing to learn
        (True, [(TWO, 2)] * 3 + [(ONE, 1)], 1, 4),  # the loss becomes known
        (True, [(TWO, 2)], 2, 10),  # a worker died on a node that lives on
        (True, [({"only": 4.0}, 4)], 2, 1),
        (False, [(TWO, 1)], 1, 6),  # others have a CPU, and keep it
        (False, [(HEAD, 0)], 0, 1),
    ],
)
def test_room_is_counted_when_it_is_known(monkeypatch, lost, seen, expected, looks):
    now = 0

    def look():
        return seen[min(now, len(seen) - 1)]

    def sleep(_seconds):
        nonlocal now
        now += 1

    monkeypatch.setattr(nodes, "usable_nodes", lambda: cluster_of(look()[0]))
    monkeypatch.setattr(nodes, "free_workers", lambda _gpus: look()[1])
    monkeypatch.setattr(nodes.time, "sleep", sleep)
    monkeypatch.setattr(nodes.time, "monotonic", lambda: now)
    before = set(TWO) if "only" not in seen[0][0] else {"only"}
    assert nodes.workers_left(2, before, lost, notice_s=9, release_s=5) == expected
    assert now + 1 == looks


def test_workers_with_gpus_need_both_on_one_node(monkeypatch):
    free = [{"CPU": 4.0}, {"CPU": 1.0, "GPU": 8.0}, {"CPU": 3.0, "GPU": 2.0}]
    monkeypatch.setattr(nodes, "free_resources", lambda: free)
    assert nodes.free_workers() == 8
    assert nodes.free_workers(gpus=1.0) == 3
    assert nodes.free_workers(gpus=0.5) == 4


def test_without_private_names_of_ray_nodes_are_counted_in_the_public_way(monkeypatch):
    monkeypatch.setattr(ray_private, "find", lambda _name, _instead: None)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.0})
    assert ray_private.draining_nodes() == set()
    assert ray_private.free_resources() == [{"CPU": 3.0}]
    ray_private.request_nodes("run", [{"CPU": 1.0}])
