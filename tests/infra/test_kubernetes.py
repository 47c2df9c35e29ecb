"""infra/k8s, held against what no cluster is needed for."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from tests.services.installation import ROOT, composed

K8S = ROOT / "infra" / "k8s"
KNOWN = {
    "v1": {"Namespace", "Service", "ServiceAccount", "ConfigMap", "PersistentVolumeClaim"},
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


def test_a_run_reads_its_data_from_a_claim_that_an_overlay_makes():
    (mount,) = (each for each in PODS["job"]["spec"]["containers"][0]["volumeMounts"] if each["name"] == "data")
    (volume,) = (each for each in PODS["job"]["spec"]["volumes"] if each["name"] == "data")
    assert (mount["readOnly"], volume["persistentVolumeClaim"]) == (
        True,
        {"claimName": "{{ data_claim }}", "readOnly": True},
    )
    assert mount["mountPath"] == DOCUMENTS["worker-ConfigMap-redoubt-calls"]["data"]["REDOUBT_DATA"]
    claim = JOB["variables"]["properties"]["data_claim"]["default"]
    assert f"data-PersistentVolumeClaim-{claim}" in DOCUMENTS


def test_the_worker_looks_at_its_own_namespace_only():
    """Prefect's observer asks for the pods of the whole cluster unless it is told: the role allows one namespace."""
    (worker,) = PODS["worker-Deployment-worker"]["spec"]["containers"]
    given = {each["name"]: each["value"] for each in worker["env"]}
    namespace = DOCUMENTS["namespace-Namespace-redoubt"]["metadata"]["name"]
    assert given["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"] == namespace


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


def rendered(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What kubectl makes of a kustomization, by kind and name; names that end in a digest are cut before it."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    made = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr) == (0, "")
    found = [each for each in yaml.safe_load_all(made.stdout) if each]
    return {(each["kind"], re.sub(r"-[a-z0-9]{10}$", "", each["metadata"]["name"])): each for each in found}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kubectl_makes_every_document_in_one_namespace(folder):
    made = rendered(folder)
    written = {(each["kind"], each["metadata"]["name"]) for each in _written(folder)}
    assert set(made) == written | {("ConfigMap", "redoubt-job")}
    homes = {name: each["metadata"].get("namespace") for (kind, name), each in made.items() if kind != "Namespace"}
    assert set(homes.values()) == {"redoubt"}, homes


def _written(folder: Path) -> Iterator[dict[str, Any]]:
    """The documents that a kustomization names, and those of the ones that it is laid over."""
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        if (folder / name).is_dir():
            yield from _written(folder / name)
        else:
            yield from yaml.safe_load_all((folder / name).read_text())


def test_an_overlay_gives_its_image_to_servers_worker_and_jobs_and_the_template_is_what_the_worker_mounts():
    made = rendered(K8S / "overlays" / "example")
    assert json.loads(made["ConfigMap", "redoubt-job"]["data"]["job.json"]) == JOB
    image = "registry.example.org/redoubt:0.1.0"
    pods = {name: made["Deployment", name]["spec"]["template"]["spec"] for name in ("mlflow", "prefect", "worker")}
    used = {name: {each["image"] for each in containers({"spec": pod})} for name, pod in pods.items()}
    assert used == {"mlflow": {image}, "prefect": {image}, "worker": {f"{image}-k8s"}}
    (pool,) = (each for each in pods["worker"]["initContainers"] if each["name"] == "pool")
    assert pool["env"] == [{"name": "JOB_IMAGE", "value": image}]
    (mounted,) = (each["configMap"]["name"] for each in pods["worker"]["volumes"] if each["name"] == "job")
    assert mounted == made["ConfigMap", "redoubt-job"]["metadata"]["name"]
    assert f'"s|{JOB["variables"]["properties"]["image"]["default"]}|$JOB_IMAGE|"' in pool["args"][0]


def test_a_job_has_the_fields_that_a_kubernetes_pool_needs():
    """What prefect_kubernetes refuses a template without, and what a Job is to Kubernetes."""
    assert set(JOB) == {"job_configuration", "variables"}
    said, manifest = JOB["job_configuration"], JOB["job_configuration"]["job_manifest"]
    assert {"command", "env", "labels", "name", "namespace", "job_manifest", "stream_output"} <= set(said)
    assert {"job_watch_timeout_seconds", "pod_watch_timeout_seconds"} <= set(said)
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
    assert manifest["metadata"]["generateName"] == "{{ name }}-"
    assert (manifest["metadata"]["labels"], manifest["metadata"]["namespace"]) == ("{{ labels }}", "{{ namespace }}")
    spec, pod = manifest["spec"], manifest["spec"]["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (1, 1, 0)  # Prefect retries, not the job
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert container["name"] == "prefect-job"
    assert (container["image"], container["args"], container["env"]) == ("{{ image }}", "{{ command }}", "{{ env }}")
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    variables = JOB["variables"]
    assert variables["type"] == "object"
    assert all({"title", "type"} <= set(each) or "anyOf" in each for each in variables["properties"].values())
    for name, each in variables["properties"].items():
        kinds = {"string": str, "integer": int, "boolean": bool}
        assert "default" not in each or type(each["default"]) is kinds[each["type"]], name


@pytest.mark.nightly
def test_prefects_own_worker_for_kubernetes_takes_the_template_and_makes_the_job_of_a_run():
    pytest.importorskip("prefect_kubernetes", reason="the extra k8s is not installed")
    from prefect.client.schemas.objects import FlowRun
    from prefect.utilities.templating import apply_values
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    properties = JOB["variables"]["properties"]
    values = {name: each["default"] for name, each in properties.items() if "default" in each}
    assert set(JOB["job_configuration"]) <= set(KubernetesWorkerJobConfiguration.model_fields)
    job = KubernetesWorkerJobConfiguration.model_validate(apply_values(JOB["job_configuration"], values))
    job.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="a run"))
    spec = job.job_manifest["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert "PREFECT__FLOW_RUN_ID" in {each["name"] for each in container["env"]}
    assert (spec["ttlSecondsAfterFinished"], job.namespace) == (86400, "redoubt")
    assert spec["template"]["metadata"]["labels"]["redoubt/role"] == "flow-run"
    assert "{{" not in json.dumps(job.job_manifest)
