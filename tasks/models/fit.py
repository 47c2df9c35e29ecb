"""fit(): the one training loop, for plain training and for hardening alike."""

import copy
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Generator, Tensor, nn
from torch.optim import lr_scheduler

from tasks.defences import Defence
from tasks.models.config import TrainingConfig
from tasks.models.team import ALONE, Team

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to. Losses are the defence's own, so hardening is judged by the hardened loss."""

    number: int
    train_loss: float
    select_loss: float
    select_accuracy: float
    lr: float


@dataclass
class _Training:
    """All that a checkpoint must hold for training to go on as if it had never stopped."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    scheduler: lr_scheduler.LRScheduler
    rng: Generator
    history: list[Epoch]
    best: dict[str, Tensor]
    best_loss: float = float("inf")

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": self.rng.get_state(),
            "global_rng": torch.get_rng_state(),
            "history": [vars(epoch) for epoch in self.history],
            "best": self.best,
            "best_loss": self.best_loss,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.rng.set_state(state["rng"].cpu())
        torch.set_rng_state(state["global_rng"].cpu())
        self.history[:] = [Epoch(**row) for row in state["history"]]
        self.best, self.best_loss = state["best"], state["best_loss"]

    def stale(self) -> int:
        """How many epochs ago the best one was."""
        losses = [epoch.select_loss for epoch in self.history]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def fit(
    model: nn.Module,
    train: Pair,
    select: Pair,
    loss: Defence,
    config: TrainingConfig,
    *,
    checkpoint: Path | None = None,
    progress: bool = False,
    team: Team = ALONE,
) -> list[Epoch]:
    """Train the model in place and leave it with the weights of the best epoch on `select`; every epoch's figures.

    train and select are pairs x [N, ...], y [N]. With a checkpoint path, each epoch is saved there and an existing
    file is continued from: the result is the same with and without a kill. The file stays until the caller deletes it.
    team: the processes that train this model together, each of which calls this (tasks/models/distributed.py does).
    Raises ValueError when the loss stops being a number.
    """
    device = team.place(device_of(config.device))
    x, y = train[0].to(device), train[1].to(device)
    with _seeded(config), _bar(progress) as bar:
        training = _prepare(model.to(device), len(x), config, device)
        if checkpoint and (state := _saved(checkpoint)):
            training.restore(state)
        taught = team.wrapped(model)
        row = bar.add_task(config.defence, total=config.epochs, completed=len(training.history))
        while len(training.history) < config.epochs and (config.patience is None or training.stale() < config.patience):
            number = len(training.history) + 1
            train_loss = _one_epoch(training, taught, x, y, loss, config, team)
            select_loss, accuracy = _look(training.model, select, loss, config, device, team)
            if not (train_loss < float("inf") and select_loss < float("inf")):
                raise ValueError(
                    f"training broke in epoch {number}: loss {train_loss}, on select {select_loss}. "
                    f"Lower lr={config.lr:g}, or look at the defence {config.defence!r}."
                )
            training.history.append(
                Epoch(number, train_loss, select_loss, accuracy, float(training.scheduler.get_last_lr()[0]))
            )
            if select_loss < training.best_loss:
                training.best_loss, training.best = select_loss, copy.deepcopy(model.state_dict())
            if checkpoint and team.leads:
                _save(training.state(), checkpoint)
            bar.update(row, advance=1, description=f"{config.defence} loss {train_loss:.3f} select {accuracy:.3f}")
        model.load_state_dict(training.best)
    model.cpu().eval()
    return training.history


def device_of(name: str) -> torch.device:
    """The device that a config asks for; auto takes CUDA, then MPS, then the CPU. Raises ValueError if it is absent."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    if not there[name]:
        raise ValueError(f"device={name!r} is not to be had here. Write device='auto' or 'cpu'.")
    return torch.device(name)


def _prepare(model: nn.Module, n: int, config: TrainingConfig, device: torch.device) -> _Training:
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    steps = config.epochs * -(-n // config.batch_size)
    scheduler: lr_scheduler.LRScheduler
    if config.schedule == "onecycle":
        scheduler = lr_scheduler.OneCycleLR(optimiser, max_lr=config.lr, total_steps=max(steps, 2))
    elif config.schedule == "cosine":
        scheduler = lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    else:
        scheduler = lr_scheduler.ConstantLR(optimiser, factor=1.0)
    rng = Generator(device=device).manual_seed(config.seed)
    return _Training(model, optimiser, scheduler, rng, [], copy.deepcopy(model.state_dict()))


def _one_epoch(
    training: _Training, model: nn.Module, x: Tensor, y: Tensor, loss: Defence, config: TrainingConfig, team: Team
) -> float:
    model.train()
    total = torch.zeros((), device=x.device)
    order = torch.randperm(len(x), generator=training.rng, device=x.device)
    rng = team.draws(training.rng, config.seed, len(training.history))
    for batch in order.split(config.batch_size):
        rows, weight = team.share(batch)
        with _autocast(config, x.device):
            value = loss(model, x[rows], y[rows], threat=config.threat, rng=rng)
            value = value if weight == 1.0 else value * weight
        training.optimiser.zero_grad(set_to_none=True)
        value.backward()
        training.optimiser.step()
        training.scheduler.step()
        total += value.detach() * (len(batch) / team.size)  # no .item() here: it would wait for the GPU
    return team.total(total).item() / len(x)


def _look(
    model: nn.Module, select: Pair, loss: Defence, config: TrainingConfig, device: torch.device, team: Team
) -> tuple[float, float]:
    """The defence's loss and the accuracy on select, always with the same draws."""
    model.eval()
    rng = Generator(device=device).manual_seed(config.seed)
    total, right = 0.0, 0
    parts = [*zip(select[0].split(512), select[1].split(512), strict=True)]
    for x, y in parts[team.rank :: team.size]:
        x, y = x.to(device), y.to(device)
        with _autocast(config, device):
            total += loss(model, x, y, threat=config.threat, rng=rng).item() * len(x)
            with torch.no_grad():
                right += int((model(x).argmax(1) == y).sum())
    total, right = team.total(torch.tensor([total, right], dtype=torch.float64)).tolist()
    return total / len(select[0]), right / len(select[0])


def _autocast(config: TrainingConfig, device: torch.device) -> torch.autocast | nullcontext[None]:
    mixed = config.precision == "bf16" or (
        config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, dtype=torch.bfloat16) if mixed else nullcontext()


@contextmanager
def _seeded(config: TrainingConfig) -> Iterator[None]:
    """Seed torch and ask for deterministic kernels, and put both back afterwards."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only so
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _save(state: dict[str, Any], path: Path) -> None:
    """Whole or not at all: a kill while writing leaves the last checkpoint as it was. A full disk is a warning.

    Two equal trainings at once write the same states, each under a name of its own until it is whole.
    """
    raw, part = io.BytesIO(), path.with_name(f".{path.stem}.{uuid4().hex}.part")
    torch.save(state, raw)
    try:
        part.write_bytes(raw.getbuffer())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        logging.getLogger("redoubt").warning("cannot save %s: %s. Training goes on without it.", path, error)


def _saved(path: Path) -> dict[str, Any] | None:
    """The state at that path; None where there is none, as where an equal training has just ended."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except FileNotFoundError:
        return None
    return state


def _bar(progress: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    shown = progress and sys.stderr.isatty()
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, disable=not shown)
