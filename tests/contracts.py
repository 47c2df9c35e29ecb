"""Checks that a part of your own keeps its contract, as scikit-learn's check_estimator does for estimators.

Each raises AssertionError with a sentence that says what is wrong.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from tasks.attacks import ThreatModel
from tasks.attacks.geometry import distance
from tasks.data import SPLITS

THREATS = (
    ThreatModel(norm="linf", eps=0.1),
    ThreatModel(norm="l2", eps=0.5),
    ThreatModel(norm="l1", eps=0.8),
    ThreatModel(norm="l0", eps=2),
    ThreatModel(norm="l0-pixels", eps=2),
)


class Case(NamedTuple):
    """What an attack is called with."""

    shape: tuple[int, ...]
    classes: int
    dtype: torch.dtype = torch.float32
    contiguous: bool = True

    def inputs(self) -> Tensor:
        """x [B, ...] in 0..1, the same each time."""
        x = torch.rand(self.shape, generator=Generator().manual_seed(0), dtype=self.dtype)
        return x if self.contiguous else x.transpose(-1, -2).contiguous().transpose(-1, -2)


CASES = (
    Case((1, 6), classes=2),
    Case((5, 6), classes=3),
    Case((3, 1, 4, 4), classes=3),
    Case((2, 3, 4, 5), classes=2, dtype=torch.float64, contiguous=False),
)


def check_attack(attack: Callable[..., Tensor]) -> None:
    """An attack returns x_adv like x, inside ball and box, leaves x, y and the model alone, and obeys its rng.

    Under every norm; for a batch of one, rows and images, two classes and three, float32 and float64.
    """
    for threat in THREATS:
        for case in CASES:
            _check_attack(attack, threat, case)


def _check_attack(attack: Callable[..., Tensor], threat: ThreatModel, case: Case) -> None:
    model, x = _network(case.shape, classes=case.classes).to(case.dtype), case.inputs()
    y = torch.zeros(len(x), dtype=torch.long)
    kept, state, drawn = (x.clone(), y.clone()), _state(model), torch.get_rng_state()
    first, second = (attack(model, x, y, threat=threat, rng=Generator().manual_seed(1)) for _ in range(2))
    assert first.shape == x.shape, f"returned shape {list(first.shape)} for x {list(x.shape)}"
    assert first.dtype == x.dtype, f"returned {first.dtype} for x {x.dtype}"
    assert not first.requires_grad, "returned a tensor that requires grad; detach it"
    assert torch.equal(x, kept[0]), "changed its input x in place"
    assert torch.equal(y, kept[1]), "changed its input y in place"
    assert _same(state, _state(model)), "changed the model: mode, requires_grad, .grad, weights or buffers"
    assert first.isfinite().all(), "returned values that are not finite"
    moved = distance(x, first, threat).max().item()
    assert moved <= threat.eps * (1 + 1e-4), f"left the ball: moved {moved:.4g} under {threat}"
    low, high = threat.bounds
    inside = first.min() >= low - 1e-6 and first.max() <= high + 1e-6
    assert inside, f"left the box {threat.bounds}"
    assert torch.equal(first, second), "the same rng gave two results; draw from rng alone"
    assert torch.equal(drawn, torch.get_rng_state()), "drew from torch's own generator; draw from rng alone"


def check_defence(defence: Callable[..., Tensor]) -> None:
    """A defence returns a finite scalar with gradients for the weights, and leaves requires_grad flags alone."""
    for threat in THREATS:
        model = _network((4, 6), classes=3).train()
        model[1].weight.requires_grad_(False)
        flags = [p.requires_grad for p in model.parameters()]
        x, y = torch.rand(4, 6), torch.tensor([0, 1, 2, 0])
        loss = defence(model, x, y, threat=threat, rng=Generator().manual_seed(0))
        assert loss.ndim == 0, f"returned shape {list(loss.shape)}; a defence is a scalar loss"
        assert loss.isfinite(), "returned a loss that is not finite"
        assert [p.requires_grad for p in model.parameters()] == flags, "changed requires_grad of the model's weights"
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        assert any(g is not None and g.abs().sum() > 0 for g in grads), "gives the weights no gradient"


def check_model(function: Callable[[], nn.Module], *, shape: tuple[int, ...], classes: int) -> None:
    """A model maps x [B, ...] to finite logits [B, classes], sample by sample, with a gradient for x."""
    model = function()
    assert isinstance(model, nn.Module), f"returned {type(model).__name__}, not a torch.nn.Module"
    model.eval()
    x = torch.rand(3, *shape).requires_grad_()
    logits = model(x)
    assert list(logits.shape) == [3, classes], f"returned {list(logits.shape)} for 3 samples, not [3, {classes}]"
    assert logits.isfinite().all(), "returned logits that are not finite"
    (grad,) = torch.autograd.grad(logits.sum(), x)
    assert grad.isfinite().all(), "has no finite gradient for its input"
    assert torch.allclose(logits[:1], model(x[:1]), atol=1e-5), "judges a sample by its batch mates in eval mode"


def check_dataset(function: Callable[[str], Any]) -> None:
    """A dataset answers for train, select and test with pairs of equal length, the same each time."""
    for split in SPLITS:
        (x, y), (again, labels) = function(split), function(split)
        assert len(x) == len(y) > 0, f"{split}: x holds {len(x)} samples, y {len(y)}"
        assert x.is_floating_point(), f"{split}: x is {x.dtype}; scale it to floats"
        class_numbers = not y.is_floating_point() and y.min() >= 0
        assert class_numbers, f"{split}: y must hold class numbers from 0"
        repeatable = torch.equal(x, again) and torch.equal(y, labels)
        assert repeatable, f"{split}: two calls gave different data"


def _network(shape: tuple[int, ...], *, classes: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = int(torch.tensor(shape[1:]).prod())
        layers = (nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, classes), nn.BatchNorm1d(classes, affine=False))
        return nn.Sequential(nn.Flatten(), *layers).eval()


def _state(model: nn.Module) -> list[Any]:
    return [
        *((m.training,) for m in model.modules()),
        *((b.clone(),) for b in model.buffers()),
        *(
            (p.requires_grad, None if p.grad is None else p.grad.clone(), p.detach().clone())
            for p in model.parameters()
        ),
    ]


def _same(a: list[Any], b: list[Any]) -> bool:
    return all(
        torch.equal(u, v) if isinstance(u, Tensor) and isinstance(v, Tensor) else u is v or u == v
        for left, right in zip(a, b, strict=True)
        for u, v in zip(left, right, strict=True)
    )
