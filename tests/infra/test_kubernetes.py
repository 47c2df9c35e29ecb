"""infra/k8s, held against what no cluster is needed for."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.services.installation import ROOT, composed

K8S = ROOT / "infra" / "k8s"
KNOWN = {
    "v1": {"Namespace", "Service", "ServiceAccount", "ConfigMap"},
    "apps/v1": {"Deployment"},
    "rbac.authorization.k8s.io/v1": {"Role", "RoleBinding"},
    "networking.k8s.io/v1": {"NetworkPolicy"},
}
FOLDERS = [path.parent for path in sorted(K8S.rglob("kustomization.yaml"))]


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(K8S.rglob("*.yaml")):
        if path.name != "kustomization.yaml":
            for document in yaml.safe_load_all(path.read_text()):
                yield f"{path.stem}-{document['kind']}-{document['metadata']['name']}", document


DOCUMENTS = dict(documents())
JOB = json.loads((K8S / "base" / "job.json").read_text())
PODS = {name: each["spec"]["template"] for name, each in DOCUMENTS.items() if each["kind"] == "Deployment"}
PODS["job"] = JOB["job_configuration"]["job_manifest"]["spec"]["template"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_kustomization_names_every_file_beside_it_and_nothing_else(folder):
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    files = {*said["resources"], *(patch["path"] for patch in said.get("patches", []))}
    files |= {name for made in said.get("configMapGenerator", []) for name in made["files"]}
    assert all((folder / name).exists() for name in files)
    assert {path.name for path in folder.iterdir() if path.name != "kustomization.yaml"} <= files


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_of_a_known_kind_and_no_secret(name):
    document = DOCUMENTS[name]
    assert document["kind"] in KNOWN[document["apiVersion"]]
    if document["kind"] == "ConfigMap":
        assert not [key for key in document["data"] if re.search("PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY", key)]


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_restricted_limited_and_not_root(name):
    pod = PODS[name]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["runAsUser"] == 10001
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["spec"]["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])
    assert all("hostPath" not in volume for volume in pod["spec"]["volumes"])
    for container in containers(pod):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        given = container.get("env", [])  # in a job it is what Prefect puts there
        names = [] if given == "{{ env }}" else [each["name"] for each in given]
        assert not [name for name in names if re.search("(PASSWORD|AUTH_STRING|ACCESS_KEY)$", name)]


def test_only_the_worker_may_talk_to_kubernetes():
    told = {name for name, pod in PODS.items() if pod["spec"]["automountServiceAccountToken"]}
    assert told == {"worker-Deployment-worker"}
    rules = DOCUMENTS["worker-Role-worker"]["rules"]
    assert not any("*" in rule["verbs"] + rule["resources"] or "secrets" in rule["resources"] for rule in rules)


def test_what_lasts_has_probes():
    for name, pod in PODS.items():
        for container in pod["spec"]["containers"] if name != "job" else ():
            assert {"startupProbe", "livenessProbe"} <= set(container), name


def test_everything_is_denied_but_what_is_named():
    policies = [each["spec"] for name, each in DOCUMENTS.items() if name.startswith("network-NetworkPolicy")]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies
    assert (
        DOCUMENTS["namespace-Namespace-redoubt"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        == "restricted"
    )
    roles = {pod["metadata"]["labels"]["redoubt/role"] for pod in PODS.values()}
    named = set(
        re.findall(r"mlflow|prefect|worker|flow-run", json.dumps([each.get("podSelector") for each in policies]))
    )
    assert roles == named == {"mlflow", "prefect", "worker", "flow-run"}


def test_a_job_has_every_variable_that_it_names_and_takes_a_gpu():
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(JOB["job_configuration"])))
    assert used == set(JOB["variables"]["properties"])
    limits = PODS["job"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "{{ gpus }}"
    assert JOB["variables"]["properties"]["gpus"]["default"] == "0"


def test_a_secret_is_named_in_the_overlay_that_says_how_to_make_it():
    wanted = set(
        re.findall(r'secretRef"?: \{ ?"?name"?: "?([\w-]+)', "".join(p.read_text() for p in (K8S / "base").iterdir()))
    )
    said = (K8S / "overlays" / "example" / "kustomization.yaml").read_text()
    assert wanted == set(re.findall(r"^#   (redoubt-\w+) ", said, re.M))


def test_servers_are_started_as_compose_starts_them():
    """The same settings, but where they run and what only a cluster has."""
    services = composed()["services"]
    for name in ("mlflow", "prefect"):
        container = PODS[f"{name}-Deployment-{name}"]["spec"]["containers"][0]
        theirs = [word for word in services[name]["command"] if "allowed-hosts" not in word and ":*" not in word]
        assert container["command"] == theirs
        ours = {each["name"]: each["value"] for each in container["env"]}
        same = set(ours) & set(services[name]["environment"])
        assert len(same) >= 4
        assert {key: ours[key] for key in same} == {key: services[name]["environment"][key] for key in same}
