"""What happens where Ray lacks a name that it never promised; no Ray is started."""

import inspect
import logging
import os
import types

import pytest

from recray.errors import RecrayError
from recray.runtime import ray_private
from recray.runtime.environment import switched
from recray.runtime.ray_private import NAMES, find
from recray.runtime.session import set_token_mode


@pytest.fixture(autouse=True)
def fresh_log():
    ray_private._say_missing.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_this_ray_has_every_name(name, caplog):
    assert find(name, "") is not None
    assert not caplog.records


@pytest.mark.parametrize("name", ["ray._gone:x", "ray.serve:_gone", "ray.serve:run._gone"])
def test_a_missing_name_is_said_once(name, caplog):
    assert find(name, "slower") is None
    assert find(name, "slower") is None
    (record,) = caplog.records
    assert name.replace(":", ".") in record.getMessage()
    assert record.levelno == logging.WARNING


@pytest.fixture
def without_names(monkeypatch):
    monkeypatch.setattr(ray_private, "find", lambda _name, _instead: None)


@pytest.mark.usefixtures("without_names")
def test_the_public_way_is_taken_without_the_names():
    from ray.train.torch import TorchTrainer

    assert ray_private.lean_trainer() is TorchTrainer
    assert ray_private.dashboard_url() is None
    assert ray_private.serve_address() is None
    ray_private.forget_serve()


def test_the_coordinator_takes_what_a_training_asks_it_for(monkeypatch):
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as module

    asked: list[dict] = []
    actor = types.SimpleNamespace(
        request_resources=types.SimpleNamespace(remote=lambda **given: asked.append(given))
    )
    monkeypatch.setattr(module, "get_or_create_autoscaling_coordinator", lambda: actor)
    ray_private.request_nodes("run", [{"CPU": 1.0}])
    (given,) = asked
    inspect.signature(module._AutoscalingCoordinatorActor.request_resources).bind(None, **given)
    assert given["resources"] == [{"CPU": 1.0}]


@pytest.mark.usefixtures("without_names")
def test_a_ray_that_cannot_be_told_to_ask_for_tokens_is_refused(monkeypatch):
    import ray  # noqa: F401

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    for _ in range(2):
        with pytest.raises(RecrayError, match=r"no ray\._raylet\.Config.*set the variable before"):
            set_token_mode()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    set_token_mode()


def test_a_serve_client_of_another_shape_is_taken_for_none(monkeypatch, caplog):
    for client in (lambda: None, lambda **_options: types.SimpleNamespace()):
        monkeypatch.setattr(ray_private, "find", lambda _name, _instead, made=client: made)
        assert ray_private.serve_address() is None
    assert len(caplog.records) == 1


def test_a_scheduler_that_looks_at_more_of_a_trial_begins_without_it(caplog):
    class Curious:
        def on_trial_add(self, controller, trial):
            assert controller.anything, trial

    ray_private.replay_trial(Curious(), "t1", [{"epoch": 1, "value": 0.5}])
    assert "trials of before do not count" in caplog.text


@pytest.mark.parametrize(("overrule", "inside"), [(False, "mine"), (True, "1")])
def test_switches_are_set_for_a_while(monkeypatch, overrule, inside):
    monkeypatch.setenv("RECRAY_KEPT", "mine")
    monkeypatch.delenv("RECRAY_NEW", raising=False)
    with switched({"RECRAY_KEPT": "1", "RECRAY_NEW": "1"}, overrule):
        assert (os.environ["RECRAY_KEPT"], os.environ["RECRAY_NEW"]) == (inside, "1")
    assert os.environ["RECRAY_KEPT"] == "mine"
    assert "RECRAY_NEW" not in os.environ
