"""fit() against a bare torch loop on MNIST: samples per second, plain and adversarial.

    REDOUBT_DATA=<folder with mnist/> .venv/bin/python infra/bench/fit.py

Same model, batches, optimiser and schedule. The bare loop neither looks at select nor keeps checkpoints; fit() does
both. Rounds alternate; the ratio is of the medians.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from flows.recipes import mnist
from tasks.data import load
from tasks.defences import DEFENCES, Defence
from tasks.models import TrainingConfig, build, fit

ROUNDS = 3


def bare(model: nn.Module, x: Tensor, y: Tensor, loss: Defence, config: TrainingConfig) -> None:
    """What one would write without us."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    steps = config.epochs * -(-len(x) // config.batch_size)
    scheduler = lr_scheduler.OneCycleLR(optimiser, max_lr=config.lr, total_steps=steps)
    rng = torch.Generator().manual_seed(0)
    for _ in range(config.epochs):
        for batch in torch.randperm(len(x), generator=rng).split(config.batch_size):
            optimiser.zero_grad()
            loss(model, x[batch], y[batch], threat=config.threat, rng=rng).backward()
            optimiser.step()
            scheduler.step()


def main() -> None:
    """Print the table."""
    splits = load("mnist")
    (x, y), select = splits["train"], splits["select"]
    print(f"{'loss':14}{'fit, samples/s':>16}{'bare, samples/s':>17}{'ratio':>8}")
    for name, n in (("plain", len(x)), ("adversarial", 10_000)):
        config = mnist().training.model_copy(update={"defence": name, "epochs": 2})
        part, seen, loss = (
            (x[:n], y[:n]),
            select if n == len(x) else (select[0][:1000], select[1][:1000]),
            DEFENCES[name],
        )
        rates = {"fit": [], "bare": []}
        for _ in range(ROUNDS):
            started = time.perf_counter()
            bare(build(config.model), *part, loss, config)
            rates["bare"].append(config.epochs * n / (time.perf_counter() - started))
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                fit(build(config.model), part, seen, loss, config, checkpoint=Path(folder) / "c.pt")
                rates["fit"].append(config.epochs * n / (time.perf_counter() - started))
        ours, theirs = (statistics.median(rates[who]) for who in ("fit", "bare"))
        print(f"{name:14}{ours:16,.0f}{theirs:17,.0f}{ours / theirs:8.2f}")


if __name__ == "__main__":
    main()
