"""Our minimum-norm searches against adv-lib's: FMN, DDN, PDPGD and sigma-zero.

    .venv/bin/pip install --no-deps adv-lib==0.2.8 tqdm
    REDOUBT_DATA=<folder with mnist/> .venv/bin/python infra/bench/crosscheck.py

Median distance of the correct samples, robust accuracy at the threat's eps, passes and CPU seconds. `ours` is the
minimum-norm search alone, from the sample itself; `curve` is the one that follows the suite.
"""

import sys
import time
from collections.abc import Callable
from unittest.mock import MagicMock

import ground
import torch
from torch import Tensor, nn

for absent in ("torchvision", "visdom"):  # adv-lib imports them for its perceptual attacks and its plots alone
    sys.modules.setdefault(absent, MagicMock())

from adv_lib.attacks import ddn, fmn, pdpgd, sigma_zero  # noqa: E402

from tasks.attacks import ThreatModel  # noqa: E402
from tasks.attacks.fmn import minimum_norm  # noqa: E402
from tasks.attacks.geometry import distance  # noqa: E402
from tasks.metrics import measure, security_curve  # noqa: E402
from tasks.metrics.isolation import Meter  # noqa: E402

Peer = Callable[[nn.Module, Tensor, Tensor], Tensor]
FINITE = {"linf": float("inf"), "l2": 2, "l1": 1, "l0": 0}


def peers(norm: str) -> dict[str, Peer]:
    """adv-lib's attacks for this norm, with its own numbers of steps where it has them."""
    of_norm: dict[str, Peer] = {}
    if norm in FINITE:
        of_norm["fmn 100"] = lambda model, x, y: fmn(model, x, y, norm=FINITE[norm], steps=100)
    if norm == "l2":
        of_norm["ddn 100"] = lambda model, x, y: ddn(model, x, y, steps=100)
    if norm in ("l1", "linf", "l2"):
        of_norm["pdpgd 500"] = lambda model, x, y: pdpgd(model, x, y, norm=FINITE[norm], num_steps=500)
    if norm == "l0":
        of_norm["sigma-zero 300"] = lambda model, x, y: sigma_zero(model, x, y, num_steps=300)
    return of_norm


def row(name: str, who: str, threat: ThreatModel, model: nn.Module, x: Tensor, y: Tensor, attack: Peer) -> None:
    """Print what an attack found and what it cost."""
    meter, started = Meter(model), time.process_time()
    x_adv = attack(meter, x, y)
    took = time.process_time() - started
    with torch.no_grad():
        correct, fooled = model(x).argmax(1) == y, model(x_adv).argmax(1) != y
    away = distance(x, x_adv, threat).masked_fill(~fooled, float("inf"))[correct]
    robust = (away > threat.eps).sum() / len(x)
    passes = (meter.forward_samples + meter.backward_samples) / len(x)
    print(f"{name:18}{threat!s:12}{who:16}{away.median():10.4f}{robust:8.3f}{passes:9.0f}{took:8.2f}", flush=True)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"{'model':18}{'threat':12}{'attack':16}{'median':>10}{'robust':>8}{'passes':>9}{'CPU, s':>8}")
    for name, n, threat in (
        ("digits-mlp-adv", 300, ground.LINF(eps=0.1)),
        ("digits-mlp-adv", 300, ground.L2(eps=0.5)),
        ("digits-mlp-adv", 300, ground.L1(eps=2.0)),
        ("digits-mlp-adv", 300, ThreatModel(norm="l0", eps=4)),
        ("mnist-cnn-adv-l2", 200, ground.L2(eps=2.0)),
        ("mnist-cnn-adv-l2", 200, ground.L1(eps=8.0)),
        ("mnist-cnn-adv", 200, ground.LINF(eps=0.2)),
    ):
        model, (x, y) = ground.model(name).requires_grad_(False), ground.images(name, n)
        for who, attack in peers(threat.norm).items():
            row(name, who, threat, model, x, y, attack)
        steps = 300 if threat.norm == "l0" else 100
        row(name, f"ours {steps}", threat, model, x, y, lambda model, x, y, t=threat, s=steps: minimum_norm(
            model, x, y, threat=t, steps=s
        )[1])  # fmt: skip
        found, curve = security_curve(model, x, y, outcomes=measure(model, x, y, threat=threat))
        at_eps = next(point.robust.value for point in curve if point.eps == threat.eps)
        passes = (found.forward_samples + found.backward_samples) / n
        print(f"{name:18}{threat!s:12}{'suite + curve':16}{'':10}{at_eps:8.3f}{passes:9.0f}", flush=True)


if __name__ == "__main__":
    main()
