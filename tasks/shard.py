"""Attack the units of an evaluation on workers, which fill the store that the evaluation then finds full."""

import logging
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel

from tasks.data import Data, load_split
from tasks.errors import EvidenceBroken
from tasks.fetch import network_of
from tasks.gpu import device_under, gpu_slot
from tasks.metrics import CellStore, EvaluationConfig, Shards, Unit, choose_rows, identity
from tasks.models import StoredModel, code_of
from tasks.redact import veiled
from tasks.workers import alone, task_runner, workers

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner
    from torch import Tensor, nn

log = logging.getLogger("redoubt")
TRIES = 2  # with fresh workers; what is missing after that is computed here
_TURN = threading.Lock()  # a worker with several threads takes one unit at a time: they share the global random state


class Work(BaseModel, frozen=True, extra="forbid"):
    """One evaluation, as its units travel."""

    model: StoredModel
    data: Data
    config: EvaluationConfig
    split: str


@task(name="attack-unit", task_run_name="attack-{unit}", cache_policy=NO_CACHE, persist_result=False)
@veiled
def attack_unit(work: Work, unit: Unit, needed: list[bytes]) -> list[bytes]:
    """What the unit adds to a store, sealed."""
    return attack_here(work, unit, needed)  # a task's own body travels by value, without the lock and what is loaded


def attack_here(work: Work, unit: Unit, needed: list[bytes]) -> list[bytes]:
    """What attack_unit() returns, in this process. Model and samples are loaded once."""
    with _TURN, alone():
        shards = _shards(work.model_dump_json())
        with gpu_slot(device_under(shards.model)):
            return shards.compute(unit, needed)


def fill(store: CellStore, work: Work, network: "nn.Module", x: "Tensor", y: "Tensor") -> frozenset[str]:
    """Put what workers compute of the evaluation into the store; nothing where REDOUBT_WORKERS names none.

    The names of the threat models that the store did not hold in whole before. Whatever fails there is missing here,
    and nothing else: the evaluation computes it itself.
    """
    words = workers()
    if not words:
        return frozenset()
    shards = Shards(network, x, y, work.config, weights=identity(work.model.digest, code_of(network)))
    new = frozenset(work.config.threats[unit.threat].name for unit in shards.missing(shards.waves()[1], store))
    for _ in range(TRIES):
        if len(shards.missing([unit for wave in shards.waves() for unit in wave], store)) < 2:
            break
        with task_runner(words) as runner:
            if hand_out(runner, work, shards, store):
                break
    return new


def hand_out(runner: "TaskRunner[Any]", work: Work, shards: Shards, store: CellStore) -> bool:
    """Have what the store lacks computed by a runner that is started. False where a worker failed."""
    return all(_hand_out(runner, work, shards, wave, store) for wave in shards.waves())


def _hand_out(runner: "TaskRunner[Any]", work: Work, shards: Shards, units: list[Unit], store: CellStore) -> bool:
    """Have the missing ones of these units computed, and adopt what comes back. False where one failed."""
    missing = shards.missing(units, store)
    if len(missing) < 2:
        return True  # as fast here, without the journey
    futures = {
        unit: runner.submit(attack_unit, {"work": work, "unit": unit, "needed": shards.needed(unit, store)})
        for unit in missing
    }
    failed = 0
    for unit, future in futures.items():
        try:
            for raw in future.result():
                shards.adopt(raw, store)
        except EvidenceBroken as broken:
            log.warning("what a worker made of unit %s is not taken: %s", unit, broken)
        except Exception as error:  # a worker may die of anything
            failed += 1
            log.warning("a worker failed at unit %s: %s: %s", unit, type(error).__name__, error)
    return failed == 0


@lru_cache(maxsize=2)
def _shards(work: str) -> Shards:
    """The work's shards in this process."""
    asked = Work.model_validate_json(work)
    network = network_of(asked.model)
    x, y = load_split(asked.data, asked.split)
    rows = choose_rows(len(y), asked.config.samples, asked.config.seed)
    return Shards(network, x[rows], y[rows], asked.config, weights=identity(asked.model.digest, code_of(network)))
