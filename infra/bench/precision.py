"""When does a search in bfloat16 pay? Passes of the proving ground's models in both precisions.

    REDOUBT_DATA=<folder with mnist/ and cifar10/> .venv/bin/python infra/bench/precision.py

The engine's rule is arithmetic (WORTH_FLOPS in tasks/metrics/isolation.py); this shows where the clock agrees.
"""

import time

import ground
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tasks.metrics.isolation import Coarse, Meter, pays_in_bf16

ROUNDS, BATCH = 5, 64
MODELS = [
    "digits-mlp-adv",
    "digits-cnn-plain",
    "mnist-cnn-adv",
    "mnist-resnet-2step",
    "cifar-cnn-adv",
    "cifar-resnet-adv",
]


def seconds(model: nn.Module, x: Tensor) -> float:
    """CPU seconds of one pass forward and backward."""
    started, leaf = time.process_time(), x.clone().requires_grad_()
    torch.autograd.grad(model(leaf).float().sum(), leaf)
    return time.process_time() - started


def main() -> None:
    """Print the table; rounds alternate, the ratio is of the medians."""
    torch.set_num_threads(1)
    print(f"{'model':20}{'MFLOP a sample':>15}{'fp32, us':>10}{'bf16, us':>10}{'ratio':>7}  auto")
    for name in (
        "digits-mlp-adv",
        "digits-cnn-plain",
        "mnist-cnn-adv",
        "mnist-resnet-2step",
        "cifar-cnn-adv",
        "cifar-resnet-adv",
    ):
        model, (x, _) = ground.model(name).requires_grad_(False), ground.images(name, BATCH)
        coarse = Coarse(model, channels_last=x.ndim == 4)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(x)
        rounds = [(seconds(model, x), seconds(coarse, x)) for _ in range(ROUNDS)]
        plain, fast = (sorted(side)[ROUNDS // 2] / BATCH * 1e6 for side in zip(*rounds, strict=True))
        chosen = "bf16" if pays_in_bf16(Meter(model), x) else "fp32"
        flops = counter.get_total_flops() / BATCH / 1e6
        print(f"{name:20}{flops:15.2f}{plain:10.1f}{fast:10.1f}{plain / fast:7.2f}  {chosen}", flush=True)


if __name__ == "__main__":
    main()
