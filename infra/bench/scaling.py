"""How the sharded evaluation scales from 1 to 2 workers, and what a thousand models a night need by its figures.

    REDOUBT_DATA=<folder with mnist/> .venv/bin/python infra/bench/scaling.py

Part 1: one model, evaluated by one worker process and then by two, from an empty store each time, each process started
and its model and samples loaded before the clock runs. `driver` is what the process that hands out has computed
meanwhile. Part 2: two kinds of model as `redoubt evaluate --again` measures them, against a real MLflow server. All of
it on one thread in each process. Nothing else may run on the machine. Ends with 1 where two workers are less than
WANTED times as fast as one, or report another thing.
"""

import argparse
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

sys.path.append(str(Path(__file__).parents[1]))
from services import mlflow_server, running  # a file beside this folder

if TYPE_CHECKING:
    from flows.config import PipelineConfig

KINDS = ("digits", "mnist")
WANTED = 1.7  # times as fast with two workers


@dataclass(frozen=True)
class Scaled:
    """One evaluation by some workers."""

    workers: int
    seconds: float
    cpu: list[float]  # of each worker
    driver: float  # CPU seconds of this process
    report: dict[str, object]  # without what a clock says

    def __str__(self) -> str:
        each = ", ".join(f"{seconds:.1f}" for seconds in self.cpu)
        return f"{self.workers:8}{self.seconds:10.1f}   {each:24}{self.driver:10.1f}"


@dataclass(frozen=True)
class Cost:
    """What one model of a kind takes."""

    kind: str
    seconds: float
    cpu: float
    memory: int  # bytes, at most
    store: int  # bytes
    requests: int

    def __str__(self) -> str:
        rest = f"{self.memory / 2**20:10.0f}{self.store / 2**20:11.1f}{self.requests:10}"
        return f"{self.kind:10}{self.seconds:10.1f}{self.cpu:10.1f}{rest}"


def config_of(kind: str, samples: int | None) -> "PipelineConfig":
    """The recipe of that kind, trained once and never hardened, on so many samples of the test split."""
    from flows.recipes import RECIPES

    recipe = RECIPES[kind]()
    return recipe.model_copy(
        update={
            "training": recipe.hardening,  # a model that stands: the costly kind
            "evaluation": recipe.evaluation.model_copy(update={"samples": samples}),
            "policy": recipe.policy.model_copy(update={"max_rounds": 0}),
        }
    )


def timeless(value: object) -> object:
    """A report without what a clock says."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "measured_at")}
    return [timeless(v) for v in value] if isinstance(value, list | tuple) else value


def scaled(workers: int, kind: str, samples: int) -> Scaled:
    """The evaluation of the newest version of that kind by so many warm worker processes."""
    from prefect.task_runners import ProcessPoolTaskRunner

    from tasks.data import describe, load
    from tasks.fetch import fetch_version, network_of
    from tasks.metrics import CellStore, Shards, choose_rows, evaluate, identity
    from tasks.models import code_of
    from tasks.shard import Work, attack_unit, hand_out
    from tasks.track import registered

    config = config_of(kind, samples).evaluation
    stored, splits = fetch_version(registered(kind)[-1]), load(kind)
    work = Work(model=stored, data=describe(kind, splits), config=config, split="test")
    network, rows = network_of(stored), choose_rows(len(splits["test"][1]), samples, config.seed)
    x, y = (part[rows] for part in splits["test"])
    shards = Shards(network, x, y, config, weights=identity(stored.digest, code_of(network)))
    with tempfile.TemporaryDirectory() as folder, ProcessPoolTaskRunner(workers) as runner:
        first = shards.waves()[0][0]
        warm = [runner.submit(attack_unit, {"work": work, "unit": first, "needed": []}) for _ in range(2 * workers)]
        for future in warm:
            future.result()
        processes = [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
        store, begun = CellStore(folder), [sum(p.cpu_times()[:2]) for p in processes]
        started, own = time.perf_counter(), time.process_time()
        if not hand_out(runner, work, shards, store):
            raise SystemExit("a worker failed: see above")
        report, _ = evaluate(
            network, x, y, config, weights_digest=stored.digest, model_code=code_of(network), store=store
        )
        took, driver = time.perf_counter() - started, time.process_time() - own
        cpu = [sum(p.cpu_times()[:2]) - before for p, before in zip(processes, begun, strict=True)]
    return Scaled(workers, took, sorted(cpu, reverse=True)[:workers], driver, timeless(report.model_dump()))


@contextmanager
def counted() -> Iterator[list[str]]:
    """The requests that this process sends meanwhile, by their paths."""
    import requests

    sent: list[str] = []
    real = requests.Session.send

    def send(self: requests.Session, request: requests.PreparedRequest, **more: Any) -> requests.Response:
        sent.append(request.path_url)
        return real(self, request, **more)

    requests.Session.send = send  # type: ignore[method-assign]
    try:
        yield sent
    finally:
        requests.Session.send = real  # type: ignore[method-assign]


def prepared(kind: str) -> int:
    """Train, attack and register a model of that kind; how many bytes of cells it has left."""
    from flows.pipeline import posture_pipeline
    from tasks.evaluate import cells

    before = cells().size()
    posture_pipeline(config_of(kind, None if kind == "digits" else 1000))
    return cells().size() - before


def cost(kind: str, store: int) -> Cost:
    """What `redoubt evaluate --again` of the newest version takes, everything included but the start of Python."""
    from flows.asked import like_before
    from flows.evaluate import evaluate_model
    from tasks.track import registered

    started, own = time.perf_counter(), time.process_time()
    config = like_before(registered(kind)[-1])
    with counted() as sent:
        evaluate_model(config, again=True)
    took, cpu = time.perf_counter() - started, time.process_time() - own
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Cost(kind, took, cpu, memory, store, len([path for path in sent if "/mlflow" in path]))


def plan(costs: list[Cost], models: int, hours: float, efficiency: float) -> None:
    """Print what so many models a night need, half of each kind, with the arithmetic."""
    each = models // len(costs)
    work = sum(each * one.seconds for one in costs)
    night = hours * 3600 * efficiency
    workers, memory = math.ceil(work / night), max(one.memory for one in costs)
    store, requests = sum(each * one.store for one in costs), sum(each * one.requests for one in costs)
    terms = " + ".join(f"{each} x {one.seconds:.1f} s ({one.kind})" for one in costs)
    print(f"\n{models} models in a night of {hours:g} hours, {each} of each kind, one worker to a core:")
    print(f"  work      {terms} = {work:,.0f} s")
    print(f"  a worker  {hours:g} h x 3600 s x {efficiency:.2f} (efficiency, measured above) = {night:,.0f} s")
    print(f"  workers   {work:,.0f} / {night:,.0f} = {work / night:.2f}, so {workers}")
    print(f"  memory    {workers} x {memory / 2**20:,.0f} MiB = {workers * memory / 2**30:.1f} GiB")
    told = " + ".join(f"{each} x {one.store / 2**20:.1f} MiB" for one in costs)
    print(f"  store     {told} = {store / 2**30:.1f} GiB of cells, which may be deleted at any time")
    told = " + ".join(f"{each} x {one.requests}" for one in costs)
    print(f"  MLflow    {told} = {requests:,} requests, {requests / (hours * 3600):.1f} a second over the night")


def main() -> int:
    """Print both parts. The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", default="mnist", choices=KINDS, help="what part 1 evaluates")
    parser.add_argument("--samples", type=int, default=2048, help="of it; whole cells are 512")
    parser.add_argument("--repeats", type=int, default=1, help="of part 1; the fastest of each counts")
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--hours", type=float, default=8.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"REDOUBT_HOME": folder, "OMP_NUM_THREADS": "1", "REDOUBT_WORKERS": ""}
        os.environ["PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW"] = "ignore"  # the tasks are called outside of a flow
        os.environ.pop("PREFECT_API_URL", None)
        server = mlflow_server(Path(folder), backend=f"sqlite:///{folder}/mlflow.db", artifacts=f"{folder}/artifacts")
        from flows.ephemeral import prefect_api
        from flows.settle import settle

        settle()
        with running(server), prefect_api() as ready:
            os.environ["MLFLOW_TRACKING_URI"] = server.url
            ready()
            return measure(options, {kind: prepared(kind) for kind in KINDS})


def measure(options: argparse.Namespace, stored: dict[str, int]) -> int:
    """Print part 1, then part 2. 1 where two workers are not as fast as wanted, or report another thing than one."""
    print(f"{options.kind}, standard suite, {options.samples} samples, two threat models, {os.cpu_count()} cores")
    print(f"{'workers':>8}{'seconds':>10}   {'CPU s of each':24}{'driver':>10}")
    best: dict[int, Scaled] = {}
    for _ in range(options.repeats):
        for workers in (1, 2):
            found = scaled(workers, options.kind, options.samples)
            print(found, flush=True)
            best[workers] = min(found, best.get(workers, found), key=lambda one: one.seconds)
    ratio = best[1].seconds / best[2].seconds
    same = "the same" if best[1].report == best[2].report else "NOT THE SAME"
    print(f"2 workers are {ratio:.2f}x as fast (wanted: {WANTED}); their report is {same} to the bit.")
    print(f"\n{'a model':10}{'seconds':>10}{'CPU s':>10}{'MiB':>10}{'store MiB':>11}{'requests':>10}")
    costs = [cost(kind, stored[kind]) for kind in KINDS]
    for one in costs:
        print(one)
    plan(costs, options.models, options.hours, min(1.0, ratio / 2))
    return 0 if ratio >= WANTED and best[1].report == best[2].report else 1


if __name__ == "__main__":
    sys.exit(main())
