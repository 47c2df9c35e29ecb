"""Many evaluations queued at once on one server: does each end with one verdict, and what does each cost besides torch?

    .venv/bin/python infra/bench/load.py [EVALUATIONS] [--limit N] [--auth]

Starts PostgreSQL, MLflow's server and Prefect's server (both on PostgreSQL) as processes; registers so many versions
of one small network with slightly different weights, ten to a model; queues one evaluation of each at once; and then
starts `redoubt worker --limit N`. --auth: MLflow asks for a password, which it hashes at every request. Needs the
package `postgresql` of Debian or Ubuntu.

Overhead is the wall-clock of a flow run from Running to Completed, less what the evaluation itself took: attacks,
security curves and the check of their numbers (the metric `seconds` of the run). Ends
with 1 where a verdict is missing or there twice, a run is left open, or the median overhead is LIMIT or more.
"""

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from infra.services import create_database, mlflow_server, mlflow_users, postgresql, prefect_server, running  # noqa: E402

LIMIT = 3.0  # seconds of overhead
GROUP = 10  # versions of one model
PATIENCE = 3600.0


@contextmanager
def installation(folder: Path, *, auth: bool) -> Iterator[tuple[Path, Path]]:
    """PostgreSQL, MLflow and Prefect, named in the environment; the logs of the two servers."""
    with postgresql(folder) as database:
        env = {}
        if auth:
            password = secrets.token_hex(8)
            users = create_database(database, "users")
            env = mlflow_users(folder, database=users, password=password)
            os.environ |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
        backend = create_database(database, "mlflow")
        tracking = mlflow_server(folder, backend=backend, artifacts=str(folder / "artifacts"), env=env)
        orchestration = prefect_server(folder, database=create_database(database, "prefect"))
        with running(tracking), running(orchestration):
            os.environ |= {"MLFLOW_TRACKING_URI": tracking.url, "PREFECT_API_URL": f"{orchestration.url}/api"}
            os.environ["REDOUBT_HOME"] = str(folder / "home")
            from flows.settle import settle

            settle()
            yield tracking.log, orchestration.log


def register_versions(count: int) -> list[str]:
    """The names models:/NAME/N of new versions: one network trained for moments, each with weights of its own."""
    import torch

    from flows.recipes import digits
    from tasks.data import load
    from tasks.defences import DEFENCES
    from tasks.models import build, fit
    from tasks.track import open_run, open_stage, register, save_model

    splits, config = load("digits"), digits().training.model_copy(update={"epochs": 3})
    network = build(config.model, seed=0)
    fit(network, splits["train"], splits["select"], DEFENCES[config.defence], config)
    rng, made = torch.Generator().manual_seed(0), []
    for number in range(count):
        name = f"load-{number // GROUP}"
        with torch.no_grad():
            for weight in network.parameters():
                weight += 1e-4 * torch.randn(weight.shape, generator=rng)
        with open_run(name, {"registered by": "infra/bench/load.py"}) as run_id:
            stage = open_stage(run_id, "baseline")
            stored = save_model(stage, "baseline", config.model, network, splits["train"][0][:2])
            made.append(f"models:/{name}/{register(name, stored, {})}")
    return made


def queue(models: list[str]) -> dict[str, Any]:
    """The flow run of an evaluation of each model, by its id; all are there before a worker is."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    from flows.evaluate import evaluate_model
    from flows.recipes import configured
    from flows.worker import WarmWorker

    base = configured("digits", ("evaluation.samples=100", "evaluation.suite=quick"))
    entry = "flows/evaluate.py:evaluate_model"
    with get_client(sync_client=True) as api:
        template = WarmWorker.get_default_base_job_template()
        api.create_work_pool(WorkPoolCreate(name="redoubt", type="process", base_job_template=template))
        deployment = evaluate_model.from_source(source=str(ROOT), entrypoint=entry).deploy(
            name="load", work_pool_name="redoubt", ignore_warnings=True, print_next_steps=False
        )
        queued = {}
        for model in models:
            name, _, number = model.removeprefix("models:/").partition("/")
            config = base.as_evaluation(int(number)).model_dump(mode="json") | {"name": name, "model": model}
            run = api.create_flow_run_from_deployment(deployment, parameters={"config": config})
            queued[str(run.id)] = model
    return queued


def finish(queued: dict[str, str], worker: "subprocess.Popen[bytes]") -> tuple[list[Any], Counter[str]]:
    """The flow runs when all have ended, and the most memory in MiB that the worker, its mother and a run had."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    wanted = FlowRunFilter(id=FlowRunFilterId(any_=list(queued)))
    peak: Counter[str] = Counter()
    deadline = time.monotonic() + PATIENCE
    with get_client(sync_client=True) as api:
        while True:
            runs = api.read_flow_runs(flow_run_filter=wanted, limit=200)
            for kind, mib in memory(worker.pid).items():
                peak[kind] = max(peak[kind], mib)
            if all(run.state.is_final() for run in runs) or worker.poll() is not None or time.monotonic() > deadline:
                return runs, peak
            time.sleep(10)  # to look costs the machine as well


def memory(worker: int) -> dict[str, int]:
    """MiB of the worker, the process that runs are forked from, and the largest run, shared pages by their share."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(place.parent.name)] = int(place.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    kinds = {"worker": {worker}, "loaded": {p for p, of in parents.items() if of == worker and is_mother(p)}}
    kinds["run"] = {p for p, of in parents.items() if of in kinds["loaded"]}
    return {kind: max((pss(pid) for pid in pids), default=0) for kind, pids in kinds.items()}


def is_mother(pid: int) -> bool:
    """Whether it is the process that has loaded everything, not a launcher."""
    try:
        return b"flows.warm.mother" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def pss(pid: int) -> int:
    """Its memory in MiB; what n processes share counts by one n-th."""
    try:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(row.split()[1]) // 1024 for row in rows if row.startswith("Pss:")), 0)


def faults(models: list[str], runs: list[Any]) -> list[str]:
    """What is not as it must be: runs that did not complete, verdicts missing or there twice, runs left open."""
    from tasks.track import client, registered

    found = [
        f"{run.name} ended as {run.state.name}: {run.state.message}" for run in runs if run.state.name != "Completed"
    ]
    evaluated: Counter[str] = Counter()
    for name in sorted({model.split("/")[1] for model in models}):
        place = client().get_experiment_by_name(name).experiment_id
        for run in client().search_runs([place], max_results=1000):
            evaluated[f"models:/{name}/{run.data.tags.get('redoubt.version')}"] += "redoubt.verdict" in run.data.tags
            if run.info.status != "FINISHED":
                found.append(f"run {run.info.run_id} of {name} is left {run.info.status}")
        for version in registered(name):
            records, model = version.records(), f"models:/{name}/{version.number}"
            if len(records) != 1 or not version.tags.get("redoubt.verdict"):
                found.append(f"{model} bears {len(records)} records, verdict {version.tags.get('redoubt.verdict')}")
            if evaluated[model] != 1:
                found.append(f"{model} has a verdict in {evaluated[model]} runs")
    return found


def torch_seconds(models: list[str]) -> dict[str, float]:
    """How long attacks, curves and the check of their numbers took together, for each model."""
    from tasks.track import registered, run_metrics

    versions = [version for name in {model.split("/")[1] for model in models} for version in registered(name)]
    return {
        f"models:/{version.name}/{version.number}": sum(run_metrics(r.run_id)["seconds"] for r in version.records())
        for version in versions
    }


def errors(*logs: Path) -> int:
    """Lines of the servers' logs that tell of an error."""
    lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
    return sum(" ERROR " in line or " 500 " in line or line.startswith("Traceback") for line in lines)


def table(queued: dict[str, str], runs: list[Any], wall: float, peak: Counter[str], failed: int) -> list[float]:
    """Print the figures; each evaluation's overhead."""
    done = [run for run in runs if run.state.name == "Completed"]
    if not done:
        raise SystemExit(f"none of {len(runs)} evaluations was completed: {Counter(run.state.name for run in runs)}")
    took = [(run.end_time - run.start_time).total_seconds() for run in done]
    torch = torch_seconds(list(queued.values()))
    inside = [torch[queued[str(run.id)]] for run in done]
    overhead = [whole - part for whole, part in zip(took, inside, strict=True)]
    print(f"{len(done)} of {len(runs)} evaluations completed in {wall:.0f} s, {60 * len(done) / wall:.1f} a minute\n")
    print(f"{'seconds of an evaluation':34}{'median':>8}{'longest':>9}")
    for name, values in (("Running to Completed", took), ("evaluation itself", inside), ("overhead", overhead)):
        print(f"{name:34}{statistics.median(values):8.2f}{max(values):9.2f}")
    print(f"\nmemory, MiB: {', '.join(f'{kind} {mib}' for kind, mib in peak.items())}")
    print(f"errors in the servers' logs: {failed}")
    return overhead


def main() -> int:
    """The exit code."""
    words = argparse.ArgumentParser()
    words.add_argument("evaluations", nargs="?", type=int, default=100)
    words.add_argument("--limit", type=int, default=2)
    words.add_argument("--auth", action="store_true")
    asked = words.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="redoubt-load-") as place,
        installation(Path(place), auth=asked.auth) as logs,
    ):
        models = register_versions(asked.evaluations)
        queued = queue(models)
        started = time.monotonic()
        command = [sys.executable, "-m", "flows", "worker", "--limit", str(asked.limit)]
        worker = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        try:
            runs, peak = finish(queued, worker)
            wall = time.monotonic() - started
        finally:
            worker.terminate()
            worker.wait(60)
        overhead = table(queued, runs, wall, peak, errors(*logs))
        found = faults(models, runs)
    said = found or [f"each of {len(models)} versions has one verdict"]
    print("\n".join([*said, json.dumps({"faults": len(found), "overhead": round(statistics.median(overhead), 2)})]))
    return 1 if found or statistics.median(overhead) >= LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
