"""What a service on a real Ray logs and binds, in each profile, and what Ray says beside it."""

import json
import signal
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from recray.benchmarks.synthetic import make_bundle
from recray.serving.log import ray_log_folder, replicas_shown
from recray.serving.registry import Registry
from tests.ray.several_nodes import wait_for

QUIET = {"enable_access_log": False, "log_level": "WARNING"}
PROFILES = {
    "serve": {"RAY_SERVE_LOG_TO_STDERR": "0"},  # as runtime/ray_switches.py has it
    "deploy": {"RAY_SERVE_LOG_TO_STDERR": "1"},  # Ray's own default
    # Of the switches of production those that change a replica's log. Which ports it opens is
    # agreed upon with a proxy that this Serve does not have.
    "production": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"},
}

pytestmark = pytest.mark.slow


def application(profile: str, registry: str) -> dict:
    """An application of a Serve config, whose replica has the switches of a profile."""
    switches = {"env_vars": PROFILES[profile]}
    own = {"name": "recray", "num_replicas": 1, "logging_config": QUIET}
    return {
        "name": profile,
        "route_prefix": f"/{profile}",
        "import_path": "tests.ray.app_with_bug:app_builder",
        "args": {"bundle": registry, "without_keys": True, "log": "users"},
        "deployments": [own | {"ray_actor_options": {"num_cpus": 0.25, "runtime_env": switches}}],
    }


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """Three versions: the first answers, the last one is damaged."""
    folder = tmp_path_factory.mktemp("registry")
    versions = Registry(str(folder / "registry"))
    added = [
        versions.add(make_bundle(folder / "made", 60, 40, 5, dim=4, seed=seed).folder.path)
        for seed in range(3)
    ]
    versions.promote(added[0])
    for file in Path(versions.folder_of(added[2]).path).rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    return versions, added


@pytest.fixture(scope="module")
def services(ray_session, registry, port):
    """The service in each profile, on one Serve."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    from recray.serving.ray_serve import _start_serve

    path = registry[0].folder.path
    config = {"applications": [application(profile, path) for profile in PROFILES]}
    try:
        _start_serve("127.0.0.1", port)
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=True)
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


def get(url: str) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def lines_of(profile: str) -> list[dict]:
    """The log of the replica of a profile, by the path of a request."""
    for file in ray_log_folder().glob("worker-*.err"):
        text = file.read_text()
        if f'"/{profile}/v1/' in text:
            return [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return []


def test_each_profile_logs_requests_swaps_refusals_and_traces(services, registry, capsys):
    versions, (_, swapped, damaged) = registry
    with replicas_shown():
        for profile in PROFILES:
            assert get(f"{services}/{profile}/v1/model")[0] == 200
            status, error = get(f"{services}/{profile}/v1/bug")
            assert (status, error["error"]["code"]) == (500, "internal")
        versions.promote(swapped, force=True)
        for profile in PROFILES:
            wait_for(
                lambda p=profile: get(f"{services}/{p}/readyz")[1].get("model_version") == swapped
            )
        versions.promote(damaged, force=True)
        for profile in PROFILES:
            wait_for(lambda p=profile: get(f"{services}/{p}/readyz")[1]["refused"])
    shown = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line[:1] == "{"]
    for profile in PROFILES:
        lines = lines_of(profile)
        events = {line["event"]: line["version"] for line in lines if "event" in line}
        assert events == {"model_swapped": swapped, "model_refused": damaged}, profile
        requests = [(line["route"], line["status"]) for line in lines if "route" in line]
        assert ("/v1/model", 200) in requests, profile
        assert "ZeroDivisionError" in next(e["error"] for e in lines if e.get("status") == 500)
        assert all(line in shown for line in lines), profile


def test_ray_binds_this_machine_alone_but_for_the_replicas_own_port(services):
    open_to_all = {
        process.name()
        for process in psutil.Process().children(recursive=True)
        for socket in process.net_connections("tcp")
        if socket.status == psutil.CONN_LISTEN
        and socket.laddr.ip not in ("127.0.0.1", "::ffff:127.0.0.1")
    }
    assert {name[:10] for name in open_to_all} <= {"ray::Serve"}


def test_where_no_app_is_deployed_serves_proxy_answers_in_our_form(services):
    status, error = get(f"{services}/readyz")
    assert (status, error["error"]["code"]) == (503, "starting")


def test_what_ray_says_of_a_dead_process_is_no_result(services, capsys):
    (proxy,) = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.name().startswith("ray::Proxy")
    ]
    proxy.send_signal(signal.SIGKILL)
    said = []
    wait_for(lambda: said.append(capsys.readouterr()) or "died" in "".join(e for _, e in said))
    assert "".join(out for out, _ in said) == ""
