"""The engine against AutoAttack on the proving ground: robust accuracy, passes and CPU seconds in one run.

    REDOUBT_DATA=<folder with mnist/, cifar10/ and tabular/> .venv/bin/python infra/bench/engine.py

Needs `pip install pyautoattack`. Attack parameters were chosen on the rows marked `tune`; the others are a report.
One thread, so that CPU seconds are work and not waiting.
"""

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass

import ground
import torch
from ground import L1, L2, LINF
from reference import Spent, reference
from torch import Tensor, nn

from tasks.attacks import ThreatModel
from tasks.metrics import Outcomes, measure


@dataclass(frozen=True)
class Case:
    """One question: a model of the proving ground, a threat, and whether parameters were chosen on it."""

    model: str
    threat: ThreatModel
    kind: str  # what is asked of it: conv, tiny, masked, l2, l1 or another (norm)
    role: str  # tune or report
    n: int = 500

    def __str__(self) -> str:
        """What --only looks into."""
        return f"{self.model} {self.role} {self.kind} {self.threat}"


CASES = (
    Case("digits-mlp-adv", LINF(eps=0.1), "tiny", "tune"),
    Case("digits-cnn-plain", LINF(eps=0.1), "conv", "report"),
    Case("digits-saturated", LINF(eps=0.1), "masked", "tune"),
    Case("digits-quantised", LINF(eps=0.15), "masked", "tune"),
    Case("phishing-mlp-adv", LINF(eps=0.1), "tiny", "report"),
    Case("mnist-cnn-plain", LINF(eps=0.1), "conv", "tune"),
    Case("mnist-cnn-adv", LINF(eps=0.2), "conv", "tune"),
    Case("mnist-cnn-adv-l2", LINF(eps=0.1), "another", "tune"),
    Case("mnist-pool-adv-l2", LINF(eps=0.2), "another", "tune", 200),
    Case("mnist-resnet-2step", LINF(eps=0.2), "masked", "tune", 200),
    Case("mnist-pool-1step", LINF(eps=0.25), "masked", "tune", 200),
    Case("mnist-gelu-1step", LINF(eps=0.25), "masked", "tune", 200),
    Case("mnist-winners", LINF(eps=0.1), "masked", "tune", 200),
    Case("mnist-pruned", LINF(eps=0.13), "masked", "tune", 200),
    Case("mnist-routed", LINF(eps=0.1), "masked", "tune", 200),
    Case("mnist-levels", LINF(eps=0.13), "masked", "report", 200),
    Case("cifar-cnn-adv", LINF(eps=4 / 255), "conv", "report", 200),
    Case("cifar-resnet-adv", LINF(eps=4 / 255), "conv", "report", 200),
    Case("cifar-resnet-1step", LINF(eps=8 / 255), "masked", "report", 200),
    Case("digits-mlp-adv", L2(eps=0.5), "another", "tune"),
    Case("mnist-quantised", L2(eps=1.5), "masked", "tune", 200),
    Case("mnist-l2-1step", L2(eps=2.0), "masked", "tune", 200),
    Case("mnist-winners", L2(eps=1.5), "masked", "tune", 200),
    Case("mnist-routed", L2(eps=1.5), "masked", "tune", 200),
    Case("mnist-levels", L2(eps=1.5), "masked", "report", 200),
    Case("mnist-cnn-adv-l2", L2(eps=2.0), "l2", "tune"),
    Case("mnist-cnn-adv", L2(eps=1.5), "another", "tune"),
    Case("mnist-pool-adv-l2", L2(eps=1.5), "l2", "report", 200),
    Case("mnist-gelu-adv-l1", L2(eps=1.5), "another", "report", 200),
    Case("cifar-cnn-adv", L2(eps=0.5), "another", "report", 200),
    Case("digits-mlp-adv", L1(eps=2.0), "another", "tune"),
    Case("mnist-cnn-adv-l2", L1(eps=8.0), "l1", "tune"),
    Case("mnist-pool-adv-l2", L1(eps=8.0), "l1", "tune", 200),
    Case("mnist-gelu-adv-l1", L1(eps=8.0), "l1", "report", 200),
)


def ours(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, suite: str, seed: int
) -> tuple[Spent, Outcomes]:
    """What measure() finds and spends."""
    started = time.process_time()
    found = measure(model, x, y, threat=threat, suite=suite, seed=seed)
    took = time.process_time() - started
    return Spent((~found.fooled).tolist(), found.forward_samples, found.backward_samples, took), found


def compare(case: Case, suite: str, seeds: Iterable[int], kept: bool, first: int = 0) -> None:
    """Print the case's row."""
    model, (x, y) = ground.model(case.model), ground.images(case.model, case.n, first=first)
    theirs = reference(model, x, y, threat=case.threat, seed=0, kept=kept)
    runs = [ours(model, x, y, case.threat, suite=suite, seed=seed) for seed in seeds]
    robust = ", ".join(f"{spent.robust:.3f}" for spent, _ in runs)
    missed = max(sum(a and not b for a, b in zip(spent.standing, theirs.standing, strict=True)) for spent, _ in runs)
    won = min(sum(b and not a for a, b in zip(spent.standing, theirs.standing, strict=True)) for spent, _ in runs)
    cost = sum(spent.passes for spent, _ in runs) / len(runs)
    seconds = sum(spent.cpu_seconds for spent, _ in runs) / len(runs)
    print(
        f"{case.model:19}{case.threat!s:15}{case.kind:8}{case.role:7}{len(x):5}{theirs.robust:7.3f}  {robust:22}"
        f"{missed:4}{won:4}{cost / len(x):8.1f}{theirs.passes / cost:7.0f}x{theirs.cpu_seconds:9.1f}{seconds:8.2f}"
        f"{theirs.cpu_seconds / seconds:7.0f}x",
        flush=True,
    )
    for problem in {p for _, found in runs for p in found.problems}:
        print("   ", problem)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kept", action="store_true", help="take the reference's results from an earlier run")
    parser.add_argument("--only", default="", help="cases whose model, role, kind or threat holds this text")
    parser.add_argument("--first", type=int, default=0, help="of the test samples, the one to begin with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'model':19}{'threat':15}{'kind':8}{'role':7}{'n':>5}{'AA':>7}  {'ours, each seed':22}"
        f"{'-':>4}{'+':>4}{'a sample':>8}{'passes':>8}{'AA, s':>9}{'ours, s':>8}{'CPU':>8}"
    )
    for case in CASES:
        if options.only in str(case):
            compare(case, options.suite, range(options.seeds), options.kept, options.first)


if __name__ == "__main__":
    main()
