"""Serve configs: the files of cluster/ are right, and what Ray would pass over is refused."""

import copy
from pathlib import Path

import pytest
import yaml

from cluster.validate import serve
from recray.errors import RecrayError
from recray.serving.auth import find_key
from recray.serving.options import AppArgs, ServiceLimits, limits_with_own_key

CLUSTER = Path(__file__).parent.parent / "cluster"
FILES = sorted(CLUSTER.glob("serve-*.yaml"))


def check(values) -> list[str]:
    return [f"{p.key}: {p.message}" for p in serve.check_values(Path("x.yaml"), values)]


@pytest.fixture
def laptop():
    return yaml.safe_load((CLUSTER / "serve-laptop.yaml").read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_our_files_are_right_and_ray_takes_them(path):
    from ray.serve.schema import ServeDeploySchema

    assert serve.check(path) == []
    ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))


def test_there_are_two_files():
    assert [path.name for path in FILES] == ["serve-laptop.yaml", "serve-production.yaml"]


APPLICATION = ["applications", 0]
OURS = [*APPLICATION, "deployments", 0]


@pytest.mark.parametrize(
    ("place", "key", "value", "said"),
    [
        ([], "httpoptions", {}, "httpoptions: unknown key; did you mean http_options?"),
        (["http_options"], "hots", "x", "http_options.hots: unknown key"),
        (OURS, "num_replicass", 3, "applications.0.deployments.0.num_replicass: unknown key"),
        (OURS, "autoscaling_config", {"min_replica": 2}, "min_replica: unknown key"),
        (APPLICATION, "deployments", {}, "deployments: Input should be a valid list"),
        ([], "applications", [], "applications: none"),
        (APPLICATION, "import_path", None, "import_path: Input should be a valid string"),
        ([*APPLICATION, "args"], "bundel", "x", "args.bundel: Extra inputs"),
        ([*APPLICATION, "args"], "queue", 0, "args.queue: "),
        (["http_options"], "host", "0.0.0.0", "lets other machines in"),
        (OURS, "name", "other", "'other'; the one of ours is 'recray'"),
        (OURS, "max_surge_percent", 0, "stops a replica before the new one answers"),
        (OURS, "max_ongoing_requests", 64, "must be above args.queue (64)"),
        (OURS, "max_ongoing_requests", "many", "requests: Input should be a valid integer"),
        (OURS, "graceful_shutdown_timeout_s", 10, "must be above args.timeout (10)"),
    ],
)
def test_what_is_wrong_is_said(laptop, place, key, value, said):
    inside = laptop
    for step in place:
        inside = inside[step]
    inside[key] = value
    (problem,) = check(laptop)
    assert said in problem


def test_a_host_that_is_not_given_is_ray_s_own_which_is_open(laptop):
    del laptop["http_options"]["host"]
    assert "0.0.0.0" in check(laptop)[0]


def test_another_s_application_is_checked_for_keys_only(laptop):
    other = copy.deepcopy(laptop["applications"][0])
    other |= {"name": "x", "route_prefix": "/x", "import_path": "their.app:app"}
    other["args"] = {"anything": 1}
    laptop["applications"].append(other)
    assert check(laptop) == []


@pytest.mark.parametrize("values", [None, [], "text"])
def test_what_is_no_config_is_refused(values):
    assert check(values) == ["the whole file: must be a mapping"]


def test_a_file_that_is_no_yaml_is_refused_in_one_line(tmp_path):
    (tmp_path / "x.yaml").write_text("a: [")
    (problem,) = serve.check(tmp_path / "x.yaml")
    assert "x.yaml" in str(problem)


def test_an_application_without_keys_is_refused_where_it_starts(monkeypatch, tmp_path):
    monkeypatch.delenv("RECRAY_API_KEYS", raising=False)
    with pytest.raises(RecrayError, match="no keys"):
        AppArgs(bundle="b").limits()
    assert AppArgs(bundle="b", without_keys=True).limits().keys == ()
    monkeypatch.setenv("RECRAY_API_KEYS", f"shop sha256:{'0' * 64}")
    made = AppArgs(bundle="b", max_body=2, rate=5).limits()
    assert (made.keys[0].name, made.max_body, made.rate) == ("shop", 2 << 20, 5)


def test_who_starts_a_service_with_keys_has_one_of_its_own(monkeypatch):
    monkeypatch.delenv("RECRAY_API_KEYS", raising=False)
    assert limits_with_own_key("127.0.0.1", "own") == (None, ServiceLimits())
    with pytest.raises(RecrayError, match="lets other machines in"):
        limits_with_own_key("0.0.0.0", "own")
    monkeypatch.setenv("RECRAY_API_KEYS", f"shop sha256:{'0' * 64}")
    key, limits = limits_with_own_key("0.0.0.0", "own")
    assert [each.name for each in limits.keys] == ["shop", "own"]
    assert find_key(limits.keys, key.encode()) == "own"


def test_a_key_may_be_bound_to_a_user(tmp_path):
    from recray.serving.auth import load_keys, new_key

    file = tmp_path / "keys"
    lines = [new_key("anna", "u 7")[1], new_key("shop")[1]]
    file.write_text("\n".join(lines))
    assert [(key.name, key.user) for key in load_keys(str(file))] == [
        ("anna", "u 7"),
        ("shop", None),
    ]
    file.write_text("\n".join([*lines, new_key("anna", "u 8")[1]]))
    with pytest.raises(RecrayError, match="keys of one name are bound to different users"):
        load_keys(str(file))
    file.write_text(f"{lines[1]} users=7")
    with pytest.raises(RecrayError, match="a line is not NAME"):
        load_keys(str(file))
