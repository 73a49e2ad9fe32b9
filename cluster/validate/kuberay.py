"""Kubernetes files: KubeRay's own schemas, made strict, and rules that no schema can say.

The definitions are not part of this project: KUBERAY_CRDS names the folder that holds them.
"""

from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from cluster.validate import serve
from cluster.validate.problems import Problem, against, parse_documents, read_documents, strict

KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}


def check(file: Path, definitions: Path) -> list[Problem]:
    """All problems of a file; several documents are told apart by their names.

    Args:
        file: A Kubernetes manifest.
        definitions: Folder of KubeRay's CustomResourceDefinitions.
    """
    documents, problems = read_documents(file)
    for document in documents:
        if not isinstance(document, dict):
            problems.append(Problem(file, "the whole file", "must be mappings"))
            continue
        name = (document.get("metadata") or {}).get("name", "?")
        inside = "" if len(documents) == 1 else f"{document.get('kind')}/{name}"
        schema = _schema(document, definitions)
        if schema is None:
            message = f"{document.get('apiVersion')} {document.get('kind')} is not used here"
            problems.append(Problem(file, f"{inside}.kind".strip("."), message))
            continue
        found = against(file, document, schema, inside)
        problems += found
        if not found and document["kind"] in KINDS:
            problems += _rules(file, document)
    return problems


@cache
def _definition(folder: Path, plural: str) -> dict[str, Any]:
    """The strict schema of one of KubeRay's kinds."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    made = yaml.load((folder / f"ray.io_{plural}.yaml").read_text(), loader)
    (schema,) = (
        v["schema"]["openAPIV3Schema"] for v in made["spec"]["versions"] if v["name"] == "v1"
    )
    schema["properties"]["metadata"] = _metadata()
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    checked: dict[str, Any] = strict(schema)
    return checked


def _metadata() -> dict[str, Any]:
    name = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
    return _object(["name"], name=name, namespace=name, labels=LABELS, annotations=LABELS)


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


def _schema(document: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """The schema for a document, None if it is of no kind that is known here."""
    kind, api = document.get("kind"), document.get("apiVersion")
    if kind in KINDS and api == "ray.io/v1":
        return _definition(folder, KINDS[kind])
    makers: dict[Any, Callable[[Path], dict[str, Any]]] = {
        ("v1", "Namespace"): lambda _: {},
        ("v1", "ServiceAccount"): lambda _: {"automountServiceAccountToken": {"type": "boolean"}},
        ("policy/v1", "PodDisruptionBudget"): _budget,
        ("networking.k8s.io/v1", "NetworkPolicy"): _network_policy,
    }
    make = makers.get((api, kind))
    if make is None:
        return None
    own, text = make(folder), {"type": "string"}
    return _object(
        ["apiVersion", "kind", "metadata", *(["spec"] if "spec" in own else [])],
        apiVersion=text,
        kind=text,
        metadata=_metadata(),
        **own,
    )


def _selector() -> dict[str, Any]:
    return _object([], matchLabels=LABELS)


def _budget(_: Path) -> dict[str, Any]:
    count = {"type": ["integer", "string"]}
    spec = _object(["selector"], minAvailable=count, maxUnavailable=count, selector=_selector())
    return {"spec": spec}


def _network_policy(folder: Path) -> dict[str, Any]:
    """KubeRay's own definition holds the schema of Kubernetes' rules."""
    cluster = _definition(folder, "rayclusters")["properties"]["spec"]["properties"]
    rules = cluster["networkPolicy"]["properties"]["head"]["properties"]
    kinds = {"type": "array", "items": {"enum": ["Ingress", "Egress"]}, "minItems": 1}
    spec = _object(
        ["podSelector", "policyTypes"],
        podSelector=_selector(),
        policyTypes=kinds,
        ingress=rules["ingressRules"],
        egress=rules["egressRules"],
    )
    return {"spec": spec}


# ------------------------------------------------------------------- what a schema cannot say


def _rules(file: Path, document: dict[str, Any]) -> list[Problem]:
    kind, spec = document["kind"], document["spec"]
    place = {"RayJob": "spec.rayClusterSpec", "RayService": "spec.rayClusterConfig"}.get(
        kind, "spec"
    )
    cluster = spec if kind == "RayCluster" else spec.get(place.removeprefix("spec."))
    if cluster is None:
        return [Problem(file, place, "is missing")]
    problems = _cluster(file, place, cluster)
    if kind == "RayJob":
        problems += _job(file, spec)
    if kind == "RayService":
        problems += _service(file, spec)
    return problems


def _cluster(file: Path, place: str, cluster: dict[str, Any]) -> list[Problem]:
    """A token, Ray's own version, a head without work, and pods that may do little."""
    problems = []
    if cluster.get("authOptions", {}).get("mode") != "token":
        problems.append(Problem(file, f"{place}.authOptions.mode", "must be token"))
    if cluster.get("rayVersion") != version("ray"):
        message = f"must be {version('ray')}, as in the image; it is {cluster.get('rayVersion')}"
        problems.append(Problem(file, f"{place}.rayVersion", message))
    head = cluster["headGroupSpec"]
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        key = f"{place}.headGroupSpec.rayStartParams.num-cpus"
        problems.append(Problem(file, key, 'must be "0"'))
    problems += _pod(file, f"{place}.headGroupSpec", head)
    for number, group in enumerate(cluster.get("workerGroupSpecs", [])):
        where = f"{place}.workerGroupSpecs.{number}"
        problems += _pod(file, where, group)
        if not group["minReplicas"] <= group.get("replicas", 0) <= group["maxReplicas"]:
            problems.append(Problem(file, f"{where}.replicas", "is outside min and maxReplicas"))
    return problems


def _pod(file: Path, place: str, group: dict[str, Any]) -> list[Problem]:
    pod, where = group["template"]["spec"], f"{place}.template.spec"
    problems = []
    if not pod.get("securityContext", {}).get("runAsNonRoot"):
        problems.append(Problem(file, f"{where}.securityContext.runAsNonRoot", "must be true"))
    for number, container in enumerate(pod["containers"]):
        inside = f"{where}.containers.{number}"
        allowed = container.get("securityContext", {})
        if not allowed.get("readOnlyRootFilesystem"):
            key = f"{inside}.securityContext.readOnlyRootFilesystem"
            problems.append(Problem(file, key, "must be true"))
        if "memory" not in container.get("resources", {}).get("limits", {}):
            problems.append(Problem(file, f"{inside}.resources.limits.memory", "is missing"))
        if str(container.get("image", "")).endswith(":latest") or ":" not in container["image"]:
            problems.append(Problem(file, f"{inside}.image", "must have a tag other than latest"))
    return problems


def _job(file: Path, spec: dict[str, Any]) -> list[Problem]:
    """Rules that the operator checks, and that a retry resumes."""
    problems = []
    if not spec.get("entrypoint"):
        problems.append(Problem(file, "spec.entrypoint", "is missing"))
    elif spec.get("backoffLimit") and "--resume" not in spec["entrypoint"].split():
        problems.append(Problem(file, "spec.entrypoint", "retries need --resume"))
    if spec.get("shutdownAfterJobFinishes") and "deletionRules" in spec.get("deletionStrategy", {}):
        message = "excludes shutdownAfterJobFinishes"
        problems.append(Problem(file, "spec.deletionStrategy.deletionRules", message))
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        message = "needs shutdownAfterJobFinishes: true; the cluster would stay"
        problems.append(Problem(file, "spec.ttlSecondsAfterFinished", message))
    return problems


def _service(file: Path, spec: dict[str, Any]) -> list[Problem]:
    """A Serve config that Ray would take, with two replicas that no one node holds."""
    place = "spec.serveConfigV2"
    documents, problems = parse_documents(file, spec.get("serveConfigV2", ""), place)
    if problems:
        return problems
    values: Any = documents[0] if documents else None
    problems = serve.check_values(file, values, place)
    if problems:
        return problems
    if spec.get("upgradeStrategy", {}).get("type") not in ("NewCluster", _BY_STEPS):
        problems.append(Problem(file, "spec.upgradeStrategy.type", "must be NewCluster"))
    nodes = sum(g["minReplicas"] for g in spec["rayClusterConfig"].get("workerGroupSpecs", []))
    for number, application in enumerate(values["applications"]):
        for row, deployment in enumerate(application.get("deployments", [])):
            where = f"{place}.applications.{number}.deployments.{row}"
            problems += _replicas(file, where, deployment, nodes)
    return problems


_BY_STEPS = "NewClusterWithIncrementalUpgrade"


def _replicas(file: Path, place: str, deployment: dict[str, Any], nodes: int) -> list[Problem]:
    problems = []
    replicas = deployment.get("num_replicas", 1)
    if replicas < 2:
        problems.append(Problem(file, f"{place}.num_replicas", "must be at least 2"))
    surge = -(-replicas * deployment.get("max_surge_percent", 0) // 100)
    if not surge:
        message = "must be above 0: an update would stop a replica before the new one answers"
        problems.append(Problem(file, f"{place}.max_surge_percent", message))
    if replicas + surge > nodes:
        message = f"{replicas} and {surge} more during an update need {replicas + surge} nodes"
        problems.append(Problem(file, f"{place}.num_replicas", f"{message}, there are {nodes}"))
    return problems
