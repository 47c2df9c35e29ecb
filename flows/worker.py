"""A Prefect worker whose runs start warm. Its work pool is a plain one of type `process`, as are the deployments."""

import asyncio
import logging
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from prefect.settings import PREFECT_WORKER_QUERY_SECONDS, get_current_settings, temporary_settings
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from flows.warm.mother import ROOT
from flows.warm.nursery import Nursery
from tasks.doctor import require_prefect
from tasks.errors import WrongInput

if TYPE_CHECKING:
    from uuid import UUID

    from anyio.abc import TaskStatus
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse, WorkerFlowRunResponse

POLL = 1.0  # seconds between two questions for work; Prefect's own default is 10
SEEN = 30.0  # the same where no other run could begin: the server takes a queue that nobody asks for as abandoned
READ_LATE = ("PREFECT__", "REDOUBT_", "MLFLOW_TRACKING_", "AWS_")  # variables that are read when they are needed
FOLDER = "prefect.deployments.steps.set_working_directory"
LOG = logging.getLogger("redoubt")


def work(pool: str = "redoubt", *, limit: int = 1, name: str | None = None) -> None:
    """Take runs from the work pool, at most `limit` at once, until SIGINT or SIGTERM.

    The pool is made where it is absent. Each run has a process of its own, forked from one that has loaded everything;
    one whose environment or code is another starts cold. A run that is under way when the worker is told to end is
    asked to end too. Raises WrongInput without a server, StoreUnreachable where it does not answer or let us in.
    """
    server = os.environ.get("PREFECT_API_URL")
    if not server:
        raise WrongInput("a worker needs a Prefect server that hands out work. Name it: PREFECT_API_URL=http://.../api")
    if limit < 1:
        raise WrongInput(f"--limit {limit} would never start anything. Write 1 or more.")
    require_prefect(server)
    if not os.environ.get("OMP_NUM_THREADS"):
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // limit))  # each run its share of the cores
    os.environ.setdefault(
        "PREFECT_LOGGING_EXTRA_LOGGERS", "redoubt"
    )  # each step with its seconds, in the log of its run
    with temporary_settings(set_defaults={PREFECT_WORKER_QUERY_SECONDS: POLL}):
        asyncio.run(_work(WarmWorker(work_pool_name=pool, name=name, limit=limit)))


async def _work(worker: "WarmWorker") -> None:
    task = asyncio.current_task()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, lambda: task and task.cancel())
    with suppress(asyncio.CancelledError):
        await worker.start(printer=LOG.info)


class WarmWorker(ProcessWorker):
    """Prefect's process worker, with a nursery; it asks for work again as soon as a run has ended."""

    type = "process"
    nursery: Nursery | None = None
    asked = -math.inf  # when the server was last asked for work, on the monotonic clock

    @classmethod
    def __dispatch_key__(cls) -> str:
        return "redoubt-process"  # the other type of that name stays known

    async def setup(self) -> None:
        """Begin to load before the server is asked for anything."""
        if sys.platform == "linux":  # elsewhere the libraries do not survive a fork
            settings = get_current_settings().to_environment_variables(exclude_unset=True)
            self.nursery = Nursery({**os.environ, **settings}).open()
        await super().setup()

    async def teardown(self, *exc_info: Any) -> None:
        """End the runs, and whatever they were forked from."""
        try:
            await super().teardown(*exc_info)
        finally:
            if self.nursery is not None:
                self.nursery.close()

    async def run(
        self,
        flow_run: "FlowRun",
        configuration: ProcessJobConfiguration,
        task_status: "TaskStatus[int] | None" = None,
    ) -> ProcessWorkerResult:
        """How the run's process ended. It is started through the nursery where a fork finds what a new one would."""
        if self.nursery is not None and not configuration._command_configured:  # which a user may have done
            cold = why_cold(self.nursery.environment, configuration)
            if cold:
                LOG.info("%s starts cold: %s", flow_run.name, cold)
            else:
                configuration.command, configuration._command_configured = shlex.join(self.nursery.command), True
        return await super().run(flow_run, configuration, task_status)

    def _release_limit_slot(self, flow_run_id: "UUID") -> None:
        super()._release_limit_slot(flow_run_id)
        if self._runs_task_group is not None and self.is_setup:
            self._runs_task_group.start_soon(self._ask_again)

    async def _get_scheduled_flow_runs(self) -> list["WorkerFlowRunResponse"]:
        """Not asked while all runs that may be at once are under way: a long queue costs the server much to tell."""
        full = self._limiter is not None and self._limiter.available_tokens < 1
        now = time.monotonic()
        if full and now - self.asked < SEEN:
            return []
        self.asked = now
        return await super()._get_scheduled_flow_runs()

    async def _ask_again(self) -> None:
        with suppress(httpx.HTTPError):  # the loop, which asks every second, says what is wrong
            await self.get_and_submit_flow_runs()


def why_cold(loaded: Mapping[str, str], configuration: ProcessJobConfiguration) -> str:
    """Why a run must not be forked from what was loaded with that environment; empty where it may be."""
    env = configuration.env.items()
    other = sorted(key for key, value in env if not key.startswith(READ_LATE) and loaded.get(key) != value)
    if other:
        return f"it sets {', '.join(other)}, which is read when libraries are loaded"
    deployment: DeploymentResponse | None = configuration._related_objects.get("deployment")
    places = [configuration.working_dir, deployment.path if deployment else None]
    for step in (deployment.pull_steps or []) if deployment else []:
        for kind, values in step.items():
            if kind != FOLDER:
                return f"its code comes by {kind}"
            places.append(values["directory"])
    for place in places:
        if place and (Path(place) / "tasks" / "validate.py").is_file() and Path(place).resolve() != ROOT:
            return f"its code is the Redoubt in {place}, the worker's is in {ROOT}"
    return ""
