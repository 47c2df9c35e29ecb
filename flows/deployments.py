"""Everything that runs by itself, registered on a Prefect server. Doing it twice is as good as once."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tasks.doctor import require_prefect
from tasks.errors import StoreUnreachable, WrongInput

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

ROOT = Path(__file__).parents[1]
FILE = ROOT / "infra" / "prefect.yaml"


def deploy_all(pool: str = "redoubt", *, watch_every: int | None = None) -> list[str]:
    """Make the pool, the limit, the deployments and the automations, as far as they are absent; a line on each.

    watch_every: seconds between two watches; those of infra/prefect.yaml if none. Raises WrongInput without a server,
    and StoreUnreachable where it does not do as it is told.
    """
    server = os.environ.get("PREFECT_API_URL")
    if not server:
        raise WrongInput(
            "PREFECT_API_URL names no server to deploy to. Write e.g. PREFECT_API_URL=http://127.0.0.1:4200/api "
            "redoubt deploy, or let one machine do it all: redoubt serve"
        )
    require_prefect(server)
    plan = read_deployments(pool, watch_every)
    from prefect.client.orchestration import get_client

    from flows.automations import ensure_automations

    with get_client(sync_client=True) as client:
        told = [_ensure_pool(client, pool), _ensure_limit(client)]
        _deploy(plan)
        told += [_told(client, deployment["entrypoint"], deployment["name"]) for deployment in plan["deployments"]]
    every = next(d for d in plan["deployments"] if d["name"] == "watch")["schedules"][0]["interval"]
    return told + ensure_automations(watch_every=int(every))


def read_deployments(pool: str, watch_every: int | None) -> dict[str, Any]:
    """What infra/prefect.yaml says, for that pool and that interval."""
    plan: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    for deployment in plan["deployments"]:
        deployment["work_pool"] = deployment["work_pool"] | {"name": pool}
        if deployment["name"] == "watch" and watch_every:
            deployment["schedules"] = [deployment["schedules"][0] | {"interval": watch_every}]
    return plan


def _ensure_pool(client: "SyncPrefectClient", name: str) -> str:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        pool = client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        return f"work pool {pool.name} ({pool.type}), made"
    return f"work pool {pool.name} ({pool.type})"


def _ensure_limit(client: "SyncPrefectClient") -> str:
    """One run at a time on the GPU, unless somebody has set another limit."""
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectNotFound

    try:
        limit = client.read_global_concurrency_limit_by_name("gpu").limit
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu", limit=1))
        return "concurrency limit gpu: 1, made"
    return f"concurrency limit gpu: {limit}"


def _deploy(plan: dict[str, Any]) -> None:
    """Let Prefect's own command do it, from the root, where the entrypoints begin."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "prefect.yaml"
        file.write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
        environment = os.environ | {"REDOUBT_ROOT": str(ROOT), "PYTHONPATH": search_path()}
        ran = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # Ctrl-C is for `redoubt serve`, which ends after it
        )
    if ran.returncode != 0:
        raise StoreUnreachable(f"prefect deploy ended with {ran.returncode}:\n{(ran.stdout + ran.stderr)[-2000:]}")


def search_path() -> str:
    """Where `flows` and `tasks` are found by a process that is started elsewhere."""
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(ROOT), *([before] if before else [])])


def _told(client: "SyncPrefectClient", entrypoint: str, name: str) -> str:
    """A line on a deployment as the server knows it. Raises StoreUnreachable where it does not."""
    known = {found.name: found for found in client.read_deployments()}
    if name not in known:
        raise StoreUnreachable(f"the server did not take the deployment {name} ({entrypoint}).")
    when = ", ".join(str(_when(found.schedule)) for found in known[name].schedules) or "on demand"
    return f"deployment {name} ({entrypoint}), {when}"


def _when(schedule: Any) -> str:
    cron = getattr(schedule, "cron", None)
    return f"cron {cron} {schedule.timezone}" if cron else f"every {schedule.interval.total_seconds():g} s"
