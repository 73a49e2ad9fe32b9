"""The files of cluster/ are right, and one fault in each is found with its file and key."""

import os
from pathlib import Path

import pytest

from cluster.validate import __main__ as validate
from cluster.validate import docker, serve
from cluster.validate.problems import Problem, parse_documents

ROOT = validate.FOLDER.parent
# File, what stands in it, what stands there instead, and the key that must be named.
FAULTS = [
    ("launcher/aws.yaml", "    InstanceType: m6i.large", "    InstanceTyp: m6i.large",
     "available_node_types.head.node_config.InstanceTyp"),
    ("launcher/aws.yaml", "VolumeSize: 100", "VolumeSize: big",
     "available_node_types.head.node_config.BlockDeviceMappings.0.Ebs.VolumeSize"),
    ("launcher/aws.yaml", "idle_timeout_minutes:", "idle_timeout_minute:", "idle_timeout_minute"),
    ("launcher/aws.yaml", "  region:", "  regoin:", "provider.regoin"),
    ("launcher/aws.yaml", "cluster_name: recray", "", "cluster_name"),
    ("launcher/aws.yaml", "MarketType: spot", "MarketType: capacity-block",
     "available_node_types.worker.node_config"),
    ("launcher/aws.yaml", "head_node_type: head", "head_node_type: master", "head_node_type"),
    ("launcher/gcp.yaml", "machineType: e2", "machinetype: e2",
     "available_node_types.head.node_config.machinetype"),
    ("launcher/gcp.yaml", "resources: {CPU: 0,", "resources: {CPU: 2,",
     "available_node_types.head.resources.CPU"),
    ("launcher/gcp.yaml", "max_cpus: 64", "max_cpus: 8",
     "available_node_types.head.resources.max_cpus"),
    ("launcher/gcp.yaml", "dashboard-host=127.0.0.1", "dashboard-host=0.0.0.0",
     "head_start_ray_commands.1"),
    ("launcher/local.yaml", "    - --env=RAY_AUTH_MODE=token\n", "", "docker.run_options"),
    ("launcher/local.yaml", "worker_ips", "worker_ip", "provider.worker_ip"),
    ("launcher/local.yaml", "max_workers: 2", "max_workers: 2\nmax_workers: 3", "line 4"),
    ("kuberay/rayjob-train.yaml", "entrypoint:", "entrypont:", "spec.entrypont"),
    ("kuberay/rayjob-train.yaml", "--resume", "", "spec.entrypoint"),
    ("kuberay/rayjob-train.yaml", "rayVersion: 2.60.0", "rayVersion: 2.9.0",
     "spec.rayClusterSpec.rayVersion"),
    ("kuberay/rayjob-tune.yaml", "mode: token", "mode: tokn",
     "spec.rayClusterSpec.authOptions.mode"),
    ("kuberay/rayjob-tune.yaml", "shutdownAfterJobFinishes: true", "suspend: false",
     "spec.ttlSecondsAfterFinished"),
    ("kuberay/raycluster-dev.yaml", "false\n              readOnlyRootFilesystem: true", "false",
     "spec.headGroupSpec.template.spec.containers.0.securityContext.readOnlyRootFilesystem"),
    ("kuberay/raycluster-dev.yaml", 'num-cpus: "0"', 'num-cpus: "1"',
     "spec.headGroupSpec.rayStartParams.num-cpus"),
    ("kuberay/rayservice.yaml", "num_replicas: 2", "num_replicass: 2",
     "spec.serveConfigV2.applications.0.deployments.0.num_replicass"),
    ("kuberay/rayservice.yaml", "num_replicas: 2", "num_replicas: 1",
     "spec.serveConfigV2.applications.0.deployments.0.num_replicas"),
    ("kuberay/rayservice.yaml", "max_replicas_per_node: 1", "max_replicas_per_node: 2",
     "spec.serveConfigV2.applications.0.deployments.0.max_replicas_per_node"),
    ("kuberay/rayservice.yaml", "{type: NewCluster}", "{type: None}", "spec.upgradeStrategy.type"),
    ("kuberay/networkpolicy.yaml", "policyTypes: [Ingress, Egress]", "policyTypes: [Ingres]",
     "NetworkPolicy/deny-all.spec.policyTypes.0"),
    ("kuberay/networkpolicy.yaml", "cidr: 0.0.0.0/0", "cdir: 0.0.0.0/0",
     "NetworkPolicy/ray.spec.egress.2.to.0.ipBlock.cdir"),
    ("kuberay/namespace.yaml", "minAvailable: 1", "minAvailabel: 1",
     "PodDisruptionBudget/recray-serve.spec.minAvailabel"),
    ("docker/compose.yaml", "read_only: true", "readonly: true", "services.head.readonly"),
    ("docker/compose.yaml", "127.0.0.1:8000:8000", "8000:8000", "services.head.ports"),
    ("docker/compose.yaml", 'RAY_AUTH_MODE: token', 'RAY_AUTH_MODE: disabled',
     "services.worker-1.environment.RAY_AUTH_MODE"),
    ("docker/compose.yaml", "secrets: [ray_token, api_keys]", "secrets: [ray_tokn, api_keys]",
     "services.serve.secrets"),
]  # fmt: skip


def folder_of_definitions() -> Path | None:
    named = os.environ.get(validate.CRDS)
    return Path(named) if named else None


def kept(problems: list[Problem] | None) -> dict[str, str]:
    """Key to message, or a skip where the definitions are not at hand."""
    if problems is None:
        pytest.skip("KUBERAY_CRDS names no folder of definitions")
    return {problem.key: problem.message for problem in problems}


@pytest.mark.parametrize("file", validate.files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_every_file_is_right(file):
    assert kept(validate.check(file, folder_of_definitions())) == {}


@pytest.mark.parametrize(("name", "right", "wrong", "key"), FAULTS)
def test_a_fault_is_found_with_its_key(tmp_path, name, right, wrong, key):
    text = (validate.FOLDER / name).read_text()
    assert right in text
    copy = tmp_path / name
    copy.parent.mkdir()
    copy.write_text(text.replace(right, wrong, 1))
    for beside in ("docker/serve.yaml", "docker/Dockerfile"):
        if name == "docker/compose.yaml":
            (tmp_path / beside).write_text((validate.FOLDER / beside).read_text())
    found = kept(validate.check(copy, folder_of_definitions()))
    assert key in found, found


SERVE_CONFIGS = [file for file in validate.files() if file.name.startswith("serve")]


@pytest.mark.parametrize(
    ("right", "wrong", "key"),
    [
        ("http_options:", "httpoptions:", "httpoptions"),
        ("bundle:", "bundel:", "applications.0.args.bundel"),
        ("max_surge_percent:", "max_surge_percnt:",
         "applications.0.deployments.0.max_surge_percnt"),
        ("max_surge_percent: 100", "max_surge_percent: all",
         "applications.0.deployments.0.max_surge_percent"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("file", SERVE_CONFIGS, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_fault_of_a_serve_config_is_found_with_its_key(tmp_path, file, right, wrong, key):
    text = file.read_text()
    assert right in text
    copy = tmp_path / file.name
    copy.write_text(text.replace(right, wrong, 1))
    assert key in kept(validate.check(copy, None))


def test_replicas_of_several_machines_lie_apart(tmp_path):
    text = (validate.FOLDER / "serve-production.yaml").read_text()
    copy, key = tmp_path / "serve.yaml", "applications.0.deployments.0.max_replicas_per_node"
    for number, faults in ((1, []), (2, [key]), ("one", [key])):
        copy.write_text(text.replace("per_node: 1", f"per_node: {number}"))
        assert [problem.key for problem in serve.check(copy)] == faults, number
    copy.write_text(text.replace("per_node: 1", "per_node: 2").replace("EveryNode", "HeadOnly"))
    assert serve.check(copy) == []


def test_every_file_has_a_planted_fault():
    planted = {validate.FOLDER / name for name, *_ in FAULTS} | set(SERVE_CONFIGS)
    assert planted | {validate.FOLDER / "docker/Dockerfile"} == set(validate.files())


@pytest.mark.parametrize(
    ("right", "wrong", "key"),
    [
        ("USER ${UID}:${UID}", "", "USER"),
        ("USER ${UID}:${UID}", "USER recray", "USER"),
        ("ARG UID=1000", "ARG UID=0", "USER"),
        ("${PYTHON}-slim-bookworm", "latest", "FROM"),
        (" -c constraints.txt torch", " torch", "RUN"),
        (" --no-install-recommends", "", "RUN"),
        ("    && rm -rf /var/lib/apt/lists/* \\\n", "", "RUN"),
        ("COPY recray recray", "COPY . .", "COPY"),
        ("COPY recray recray", "COPY recry recray", "COPY"),
        ("COPY recray recray", "ADD recray recray", "ADD"),
        ("MPLCONFIGDIR=", "RAY_AUTH_TOKEN=", "ENV"),
        ('CMD ["recray", "--help"]', "CMD recray --help", "CMD"),
        ("WORKDIR /app", "WORKDIR app", "WORKDIR"),
        ("WORKDIR /app", "WORKDRI /app", "WORKDRI"),
    ],
)
def test_a_fault_of_the_dockerfile_is_found_with_its_line(tmp_path, right, wrong, key):
    text = (validate.FOLDER / "docker" / "Dockerfile").read_text()
    assert right in text
    copy = tmp_path / "Dockerfile"
    copy.write_text(text.replace(right, wrong))
    assert key in {problem.key.split()[-1] for problem in docker.check_dockerfile(copy, ROOT)}


def test_a_pipe_from_the_network_to_a_shell_is_found(tmp_path):
    file = tmp_path / "Dockerfile"
    file.write_text("FROM python:3.11-slim\nRUN wget -qO- https://example.com/x.sh | sh\nUSER 7\n")
    assert [p.key for p in docker.check_dockerfile(file, tmp_path)] == ["line 2 RUN"]


def test_a_key_given_twice_is_found_though_yaml_would_take_the_last():
    documents, problems = parse_documents(Path("x.yaml"), "a: 1\nb: {c: 1, c: 2}\n")
    assert documents == []
    assert [(p.key, p.message) for p in problems] == [("line 2", "the key 'c' is given twice")]


def test_a_secret_in_the_environment_of_a_service_is_found(tmp_path):
    text = (validate.FOLDER / "docker" / "compose.yaml").read_text()
    (tmp_path / "compose.yaml").write_text(
        text.replace("RAY_USAGE_STATS_ENABLED:", "RAY_AUTH_TOKEN:")
    )
    keys = {problem.key for problem in docker.check_compose(tmp_path / "compose.yaml")}
    assert "services.head.environment.RAY_AUTH_TOKEN" in keys


def test_a_serve_config_that_is_no_mapping_is_refused(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("- a\n")
    assert [p.message for p in serve.check(file)] == ["must be a mapping"]


def test_without_definitions_kuberay_files_are_skipped_and_said_so(monkeypatch, capsys):
    monkeypatch.delenv(validate.CRDS, raising=False)
    monkeypatch.setattr(validate, "files", lambda: [validate.FOLDER / "kuberay/namespace.yaml"])
    assert validate.main() == 0
    assert "skipped  cluster/kuberay/namespace.yaml (KUBERAY_CRDS" in capsys.readouterr().out


def test_a_folder_without_definitions_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(validate.CRDS, str(tmp_path))
    with pytest.raises(SystemExit, match="no file"):
        validate.definitions()
