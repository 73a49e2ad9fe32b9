"""Each check of the doctor on nodes that are made up: it says problem where there is one."""

import os
from dataclasses import replace

import pytest

from recray.pipelines import doctor
from recray.pipelines.doctor import Plan
from recray.pipelines.node_facts import NodeFacts, Token
from recray.runtime.nodes import Node


def answers(*changes, resources=None):
    """A node for each change of what a sound one tells."""
    import platform

    import ray

    sound = NodeFacts(
        ray=ray.__version__,
        python=platform.python_version(),
        storage="",
        data="",
        port_free=True,
        token=Token("/t", 0o600),
        torch_gpus="0",
        memory=8 << 30,
    )
    has = {"CPU": 2.0, "object_store_memory": 200 << 20} | (resources or {})
    return [
        (Node(str(n), f"node{n}", has), replace(sound, **change))
        for n, change in enumerate(changes or ({},))
    ]


def level(finding):
    assert (finding.todo != "") == (finding.level != "ok") or finding.level == "warning"
    return finding.level


def test_other_versions_are_a_problem():
    assert level(doctor._versions(answers({}, {}))) == "ok"
    found = doctor._versions(answers({}, {"ray": "2.9.0"}))
    assert level(found) == "problem"
    assert "node1: Ray 2.9.0" in found.found
    assert level(doctor._versions(answers({"python": "3.10.1"}))) == "problem"


@pytest.mark.parametrize(("workers", "expected"), [(3, "ok"), (4, "warning"), (5, "problem")])
def test_workers_need_cpus(workers, expected):
    assert level(doctor._workers(Plan(workers=workers), answers({}, {}))) == expected


def test_storage_that_one_node_does_not_see_is_a_problem(tmp_path):
    place = str(tmp_path)
    assert level(doctor._storage(place, True, answers({}), "")) == "ok"
    refused = doctor._storage(place, True, answers({}), "cannot write it: no space left")
    assert level(refused) == "problem"
    assert refused.found == "cannot write it: no space left"
    blind = answers({}, {"storage": "it does not see it"})
    assert level(doctor._storage(place, True, blind, "")) == "problem"
    assert level(doctor._storage(place, False, blind, "")) == "warning"


def test_data_a_port_and_a_silent_node():
    assert level(doctor._data("/x.csv", answers({"data": "it is not there"}))) == "problem"
    assert level(doctor._data("sample", answers())) == "ok"
    assert level(doctor._port(Plan(), answers({"port_free": False}))) == "problem"
    assert level(doctor._answering(2, ["node1: no answer"])) == "problem"


@pytest.mark.parametrize(("mode", "expected"), [(0o600, "ok"), (0o400, "ok"), (0o644, "problem")])
def test_a_token_that_others_can_read_is_a_problem(tmp_path, monkeypatch, mode, expected):
    path = tmp_path / "token"
    path.write_text("x")
    path.chmod(mode)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert level(doctor._token_here()) == expected
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert level(doctor._token_here()) == "problem"


@pytest.mark.parametrize(
    ("address", "guarded", "expected"),
    [
        (None, None, "ok"),
        ("127.0.0.1:8265", True, "ok"),
        ("127.0.0.1:8265", False, "problem"),
        ("10.0.0.5:8265", True, "warning"),
        ("10.0.0.5:8265", False, "problem"),
    ],
)
def test_an_open_dashboard_is_seen(monkeypatch, address, guarded, expected):
    monkeypatch.setattr(doctor, "asks_for_token", lambda _url: guarded)
    assert level(doctor._dashboard(address)) == expected


def test_gpus_that_torch_does_not_see_are_a_problem():
    with_gpu = {"GPU": 1.0}
    assert level(doctor._gpus(answers())) == "ok"
    assert level(doctor._gpus(answers({"torch_gpus": "1"}, resources=with_gpu))) == "ok"
    assert level(doctor._gpus(answers({"torch_gpus": "0"}, resources=with_gpu))) == "problem"
    assert level(doctor._gpus(answers({"torch_gpus": "driver too old"}))) == "problem"


def test_memory_is_compared_with_the_data():
    ratings = 25_000_000
    assert level(doctor._memory(Plan(), answers(), None)) == "ok"
    assert level(doctor._memory(Plan(), answers({"memory": 64 << 30}), ratings)) == "ok"
    assert level(doctor._memory(Plan(), answers({"memory": 10 << 30}), ratings)) == "warning"
    assert level(doctor._memory(Plan(), answers({"memory": 1 << 30}), ratings)) == "problem"
    small = answers(resources={"object_store_memory": 10 << 20})
    assert level(doctor._object_store(small)) == "problem"


def test_ratings_are_known_or_taken_from_the_size(tmp_path):
    assert doctor._ratings("ml-1m") == 1_000_209
    path = tmp_path / "ratings.csv"
    path.write_text("userId,movieId,rating,timestamp\n" + "100,2000,4.5,11111111\n" * 1000)
    assert doctor._ratings(str(path)) == pytest.approx(1000, rel=0.1)
    with pytest.raises(doctor.RecrayError, match="no such file"):
        doctor._ratings(os.path.join(tmp_path, "absent.csv"))
