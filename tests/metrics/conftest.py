"""Nets that several files measure, trained once, the reference that they are held against, and a store of cells."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.defences import adversarial, plain
from tasks.metrics import CellStore, Outcomes, measure
from tasks.models.networks import digits_cnn, mlp
from tests.metrics.nets import LINF, Winners, shown, trained


@pytest.fixture(scope="session")
def hardened() -> nn.Module:
    """About 0.85 clean and 0.44 under LINF."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trained(mlp(64, 10), partial(adversarial, steps=5), eps=0.15, epochs=12)


@pytest.fixture(scope="session")
def cnn() -> nn.Module:
    """Plainly trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trained(digits_cnn(), plain, eps=0.1, epochs=5)


@pytest.fixture(scope="session")
def cold(hardened) -> Outcomes:
    return measure(hardened, *shown(200), threat=LINF)


@pytest.fixture(scope="session")
def reference() -> Callable[..., int]:
    """How many samples AutoAttack, standard, leaves standing: (model, x, y, threat) -> count. As in infra/bench."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "infra" / "bench"))
    try:
        from reference import _run
    finally:
        del sys.path[0]
    return lambda model, x, y, threat: sum(_run(model, x, y, threat, 0).standing)


@pytest.fixture(scope="session")
def winners() -> nn.Module:
    """Slopes that do not tell which features are about to pass: 0.94 clean."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden = [nn.Linear(64, 256), Winners(), nn.Linear(256, 256), Winners()]
        return trained(nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10)), plain, eps=0.1, epochs=15)


@pytest.fixture
def store(tmp_path: Path) -> CellStore:
    return CellStore(tmp_path / "cells")
