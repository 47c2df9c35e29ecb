"""A second evaluation of a slightly changed model, begun at the first one's examples, against one from nothing.

    REDOUBT_DATA=<folder with mnist/, cifar10/ and tabular/> .venv/bin/python infra/bench/warm.py

The change is 200 more steps of the model's own adversarial training at a tenth of its rate. `warm` is suite "warm"
from the first evaluation's nearest points, within 0.195 of that one's passes; `cold` is suite "standard".
"""

import copy
from functools import partial

import ground
import torch
from ground import L1, L2, LINF

from tasks.attacks import SUITES
from tasks.defences import adversarial
from tasks.metrics import measure

CASES = (
    ("digits-mlp-adv", LINF(eps=0.1), "tune", 500),
    ("mnist-cnn-adv", LINF(eps=0.2), "tune", 500),
    ("phishing-mlp-adv", LINF(eps=0.1), "report", 500),
    ("cifar-cnn-adv", LINF(eps=4 / 255), "tune", 200),
    ("mnist-cnn-adv-l2", L2(eps=2), "tune", 250),
    ("digits-mlp-adv", L2(eps=0.5), "tune", 500),
    ("cifar-cnn-adv", L2(eps=0.5), "tune", 200),
    ("mnist-cnn-adv-l2", L1(eps=8), "tune", 250),
    ("digits-mlp-adv", L1(eps=2), "tune", 500),
)
SHARE = 0.195  # of the first evaluation's passes: with what a last turn may add, a fifth
SEEDS = 3


def changed(name: str) -> torch.nn.Module:
    """The model after a little more training."""
    spec, model = ground.MODELS[name], copy.deepcopy(ground.model(name)).train()
    x, y = ground.dataset(spec.data)("train")
    optimiser = torch.optim.AdamW(model.parameters(), lr=spec.lr / 10)
    rng = torch.Generator().manual_seed(1)
    loss = partial(adversarial, steps=5)
    for _ in range(200):
        rows = torch.randint(len(x), (128,), generator=rng)
        optimiser.zero_grad()
        loss(model, x[rows], y[rows], threat=spec.threat, rng=rng).backward()
        optimiser.step()
    return model.eval()


def main() -> None:
    """Print a row per model and seed: robust accuracy and passes of both, and what the warm one costs."""
    torch.set_num_threads(1)
    heads = (
        f"{'before':>8}{'cold':>8}{'warm':>8}{'first passes':>14}{'cold':>8}{'warm':>8}{'of first':>10}{'of cold':>9}"
    )
    print(f"{'model':18}{'threat':15}{'role':7}{'seed':>5}{heads}")
    for name, threat, role, n in CASES:
        x, y = ground.images(name, n)
        old, new = ground.model(name), changed(name)
        for seed in range(SEEDS):
            first = measure(old, x, y, threat=threat, seed=seed)
            cold = measure(new, x, y, threat=threat, seed=seed)
            known = {"warm": first.nearest, "precision": first.precision, "draws": first.draws}
            suite = SUITES["warm"].within(SHARE * first.passes / n)
            warm = measure(new, x, y, threat=threat, seed=seed, suite=suite, **known)
            cost = [found.passes / n for found in (first, cold, warm)]
            print(
                f"{name:18}{threat!s:15}{role:7}{seed:5}{first.robust_accuracy:8.3f}{cold.robust_accuracy:8.3f}"
                f"{warm.robust_accuracy:8.3f}{cost[0]:14.1f}{cost[1]:8.1f}{cost[2]:8.1f}"
                f"{cost[2] / cost[0]:10.2f}{cost[2] / cost[1]:9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
