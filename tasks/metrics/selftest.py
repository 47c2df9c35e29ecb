"""The signs of soundness on models whose faults are known, beside honest ones: does each fault show, and no other?"""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tasks.attacks import ThreatModel
from tasks.data import digits
from tasks.defences import DEFENCES
from tasks.metrics.curve import security_curve
from tasks.metrics.escalation import examine
from tasks.metrics.outcomes import measure
from tasks.metrics.soundness import Soundness
from tasks.models import TrainingConfig, fit
from tasks.models.networks import digits_cnn, mlp
from tasks.models.planted import WRAPPERS, InTraining, Steps, batchnorm_mlp, step_mlp

THREAT = ThreatModel(norm="linf", eps=0.15)
SHARP = 1e4  # the slope at which steps have none
SAMPLES = 300


@dataclass(frozen=True)
class Planted:
    """A model, the labels that it is asked with, and the fault that was put into it."""

    name: str
    model: nn.Module
    y: Tensor
    faulty: bool
    shows: tuple[str, ...] = ()  # signs of which one must fire


@dataclass(frozen=True)
class Finding:
    """What the signs said of one planted model."""

    name: str
    faulty: bool
    right: bool  # a fault was caught by one of the signs that must show it, or an honest model accused of nothing
    naive: float  # robust accuracy by PGD alone, as a pipeline without signs would log it
    before: float  # by the suite
    after: float  # after the escalation
    soundness: Soundness
    seconds: float

    @property
    def fired(self) -> tuple[str, ...]:
        """The signs that fired, answered or not."""
        return tuple(sign.name for sign in self.soundness.signs if sign.first == "alarm")


SHOWS: dict[str, tuple[str, ...]] = {
    "saturated logits": ("no gradients",),
    "quantised input": ("no gradients", "black-box beats white-box"),
    "detached preprocessing": ("no gradients", "black-box beats white-box"),
    "slope that lies": ("slopes do not fit the answers",),
    "input noise": ("unstable predictions",),
    "reads the seed": ("answers depend on the seed",),
    "dead rectifiers": ("no gradients",),
    "network in training mode": ("answers depend on the batch",),
    "labels off by one": ("labels do not fit",),
}


def selftest(suite: str = "standard", seed: int = 0) -> Iterator[Finding]:
    """A finding for every planted model and every honest one, as they come. Under a minute on two cores.

    Trains five small networks on scikit-learn's digits, plants each fault of SHOWS, and asks every sign.
    """
    x, y = digits("test")
    for planted in plant(y[:SAMPLES]):
        yield find(planted, x[:SAMPLES], suite=suite, seed=seed)


def find(planted: Planted, x: Tensor, *, suite: str = "standard", seed: int = 0) -> Finding:
    """What the suite and the signs say of one model on x [N, ...]."""
    started = time.perf_counter()
    naive = measure(planted.model, x, planted.y, threat=THREAT, suite=["pgd"], seed=seed, draws=1)
    outcomes = measure(planted.model, x, planted.y, threat=THREAT, suite=suite, seed=seed)
    before = outcomes.robust_accuracy
    outcomes, curve = security_curve(planted.model, x, planted.y, outcomes=outcomes)
    outcomes, _, soundness = examine(planted.model, x, planted.y, outcomes=outcomes, curve=curve)
    fired = {sign.name for sign in soundness.signs if sign.first == "alarm"}
    return Finding(
        name=planted.name,
        faulty=planted.faulty,
        right=bool(fired & set(planted.shows)) if planted.faulty else not fired,
        naive=naive.robust_accuracy,
        before=before,
        after=outcomes.robust_accuracy,
        soundness=soundness,
        seconds=time.perf_counter() - started,
    )


def plant(y: Tensor) -> Iterator[Planted]:
    """Honest models first, then one for each fault. y [N] are the true labels of the samples to be asked."""
    base = _trained(lambda: mlp(64, 10, 128), "plain", epochs=12, lr=4e-3)
    normed = _trained(batchnorm_mlp, "plain", epochs=15, lr=4e-3)
    yield Planted("plain MLP", base, y, faulty=False)
    hardened = _trained(lambda: mlp(64, 10, 128), "adversarial", epochs=20, lr=5e-3)
    yield Planted("adversarially trained MLP", hardened, y, faulty=False)
    yield Planted("MLP with batch normalisation and dropout", normed, y, faulty=False)
    yield Planted("convolutional net", _trained(digits_cnn, "plain", epochs=12, lr=4e-3), y, faulty=False)
    for name, wrap in WRAPPERS.items():
        yield Planted(name, wrap(copy.deepcopy(base)), y, True, SHOWS[name])
    steps = _trained(step_mlp, "plain", epochs=40, lr=1e-2)
    rectifiers = steps[2]
    assert isinstance(rectifiers, Steps)
    rectifiers.slope = SHARP
    yield Planted("dead rectifiers", steps, y, True, SHOWS["dead rectifiers"])
    yield Planted("network in training mode", InTraining(normed), y, True, SHOWS["network in training mode"])
    yield Planted("labels off by one", base, (y + 1) % 10, True, SHOWS["labels off by one"])


def _trained(build: Callable[[], nn.Module], defence: str, epochs: int, lr: float) -> nn.Sequential:
    """The network, fitted to the digits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build()
    config = TrainingConfig(model="digits-cnn", threat=THREAT, epochs=epochs, lr=lr, batch_size=64)
    fit(net, digits("train"), digits("select"), DEFENCES[defence], config)
    assert isinstance(net, nn.Sequential)
    return net.eval()
