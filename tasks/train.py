"""Train a model. Hardening is the same step with another defence."""

import hashlib
import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import nn

from tasks.attacks.code import code_digest
from tasks.data import Data, load_split
from tasks.defences import DEFENCES, Defence
from tasks.gpu import gpu_slot
from tasks.home import folder
from tasks.lookup import lookup
from tasks.models import StoredModel, TrainingConfig, build, check_model, code_of, device_of, fit
from tasks.models.distributed import fit_together
from tasks.redact import veiled
from tasks.track import log_history, open_stage, save_model, set_tags, timed


@task(name="train", task_run_name="train-{stage}", cache_policy=NO_CACHE)
@veiled
def train_model(data: Data, config: TrainingConfig, *, stage: str, run_id: str) -> StoredModel:
    """Fit one network on train, chosen on select, and store it under the stage's name.

    A run that was killed goes on from its last epoch when it is started again with the same data, config and code, of
    the model and of the defence too; what it had trained to the end is taken as it is. release() forgets that.
    """
    with timed(run_id, f"train/{stage}"):
        loss = lookup("defence", config.defence, DEFENCES)
        model = build(config.model, seed=config.seed)
        train, select = load_split(data, "train"), load_split(data, "select")
        check_model(model, config.model, train[0][:2], data.classes)
        stage_id = open_stage(run_id, stage)
        set_tags(stage_id, {f"training.{key}": str(value) for key, value in config.model_dump(mode="json").items()})
        checkpoint = folder("checkpoints") / f"{_key(data, config, stage)}-{_code(model, loss)}.pt"
        with gpu_slot(device_of(config.device)):
            if config.nproc_per_node > 1:
                history = fit_together(model, train, select, config, checkpoint=checkpoint)
            else:
                history = fit(model, train, select, loss, config, checkpoint=checkpoint, progress=True)
        log_history(stage_id, [vars(epoch) for epoch in history])
        return save_model(stage_id, stage, config.model, model, train[0][:2])


def release(data: Data, stages: Mapping[str, TrainingConfig]) -> None:
    """Delete the checkpoints of a run's stages: it came to its end, so that the next one trains anew."""
    for stage, config in stages.items():
        for checkpoint in folder("checkpoints").glob(f"{_key(data, config, stage)}-*.pt"):
            checkpoint.unlink(missing_ok=True)


def _key(data: Data, config: TrainingConfig, stage: str) -> str:
    return f"{stage}-{hashlib.sha256(f'{data.digest}{config.model_dump_json()}'.encode()).hexdigest()[:16]}"


def _code(model: nn.Module, loss: Defence) -> str:
    """Sixteen hex digits that change with the code that trains: the model's, the defence's, ours and torch's."""
    while isinstance(loss, partial):
        loss = loss.func
    loss = inspect.unwrap(loss)
    kind: Any = loss if inspect.isroutine(loss) else type(loss)  # an object may be called as well
    try:
        file = inspect.getsourcefile(kind)
    except TypeError:  # it is built in
        file = None
    own = Path(file).read_text(encoding="utf-8") if file and Path(file).is_file() else kind.__qualname__
    ours = code_digest(Path(__file__).parent, ("attacks", "data", "defences", "models"))
    return hashlib.sha256("\0".join([code_of(model), own, ours, torch.__version__]).encode()).hexdigest()[:16]
