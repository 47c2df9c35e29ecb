"""fit() in several processes: torchrun's own launcher starts them, DDP averages their gradients."""

import os
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import safetensors.torch
import torch
from torch import distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.rendezvous import rendezvous

from tasks.defences import DEFENCES
from tasks.errors import WrongInput
from tasks.lookup import lookup
from tasks.models.config import TrainingConfig
from tasks.models.fit import Epoch, Pair, device_of, fit
from tasks.models.store import build
from tasks.models.team import Team

RESTARTS = 2  # of all processes, each from the last checkpoint, where one has died


def fit_together(
    model: nn.Module, train: Pair, select: Pair, config: TrainingConfig, *, checkpoint: Path | None = None
) -> list[Epoch]:
    """What fit() does and returns, by config.nproc_per_node processes of this machine.

    Each takes its equal share of every batch, so that the weights are those of one process but for rounding where the
    loss draws nothing and no layer looks at the whole batch. Model and defence are built in each by their names.
    Where a process dies, all go on from the last checkpoint. Raises WrongInput for more processes than there are GPUs,
    ValueError as fit() does, and RuntimeError with what the first process that failed said.
    """
    many, device = config.nproc_per_node, device_of(config.device)
    if device.type == "mps" or (device.type == "cuda" and many > torch.cuda.device_count()):
        there = torch.cuda.device_count() if device.type == "cuda" else 1
        raise WrongInput(f"nproc_per_node={many}, but there are {there} devices of kind {device.type}. Write as many.")
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=many,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=RESTARTS,
        start_method="spawn",
        monitor_interval=0.2,
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        samples = {"x": train[0], "y": train[1], "select x": select[0], "select y": select[1]}
        safetensors.torch.save_file({k: v.contiguous() for k, v in samples.items()}, place / "samples")
        safetensors.torch.save_file(_state(model), place / "before")
        try:
            told = elastic_launch(launch, _member)(config.model_dump_json(), folder, str(checkpoint or ""))
        except ChildFailedError as failed:
            _, first = failed.get_first_failure()
            raise RuntimeError(f"training in {many} processes broke: {first.message}") from failed
        if isinstance(told[0], str):
            raise ValueError(told[0])
        model.load_state_dict(safetensors.torch.load_file(place / "after"))
    model.cpu().eval()
    return [Epoch(**row) for row in told[0]]


@record
def _member(words: str, folder: str, checkpoint: str) -> list[dict[str, Any]] | str:
    """One process's part, between the files in the folder; every epoch's figures, or what all say of a broken loss."""
    config = TrainingConfig.model_validate_json(words)
    cuda = device_of(config.device).type == "cuda"
    _join("nccl" if cuda else "gloo")
    team = Team(distributed.get_rank(), distributed.get_world_size())
    if cuda:
        torch.cuda.set_device(team.rank)
    model, place = build(config.model, seed=config.seed), Path(folder)
    model.load_state_dict(safetensors.torch.load_file(place / "before"))
    samples = safetensors.torch.load_file(place / "samples")
    train, select = (samples["x"], samples["y"]), (samples["select x"], samples["select y"])
    loss = lookup("defence", config.defence, DEFENCES)
    path = Path(checkpoint) if checkpoint else None
    told: list[dict[str, Any]] | str
    try:
        told = [vars(epoch) for epoch in fit(model, train, select, loss, config, checkpoint=path, team=team)]
        if team.leads:
            safetensors.torch.save_file(_state(model), place / "after")
    except ValueError as error:  # every process has the same loss, and starting again would not mend it
        told = str(error)
    team.wait()
    distributed.destroy_process_group()
    return told


def _join(backend: str) -> None:
    """Meet the other processes, those of this attempt: the store outlives a restart, with the dead ones' addresses.

    https://github.com/pytorch/pytorch/issues/135712
    """
    store, rank, size = next(rendezvous("env://"))
    store = PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
