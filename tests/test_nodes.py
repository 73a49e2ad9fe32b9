"""How many workers still have room after a loss; no Ray is started."""

import pytest

from recray.runtime import nodes
from recray.runtime.nodes import Node


def cluster_of(*cpus: float) -> list[Node]:
    return [Node(str(n), f"node{n}", {"CPU": count}) for n, count in enumerate(cpus)]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([[0, 1, 1, 1]], 2),  # the loss is not known yet, and there is room elsewhere all the same
        ([[0, 1, 1], [0, 1]], 1),  # it becomes known: one is left
        ([[0, 1, 1], [0, 1], [0, 1, 1]], 2),  # another node takes its place
        ([[4]], 2),  # a worker died, its node did not
        ([[0]], 0),
    ],
)
def test_room_is_counted_when_the_loss_is_known(monkeypatch, seen, expected):
    looks = [cluster_of(*cpus) for cpus in seen]
    monkeypatch.setattr(nodes, "alive_nodes", lambda: looks.pop(0) if len(looks) > 1 else looks[0])
    monkeypatch.setattr(nodes.time, "sleep", lambda _seconds: None)
    clock = iter(range(10**6))
    monkeypatch.setattr(nodes.time, "monotonic", lambda: next(clock))
    assert nodes.available_workers(2, notice_s=3, replace_s=6) == expected
