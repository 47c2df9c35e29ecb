"""In whatever precision and layout a model and its inputs come, and where the search itself is coarse."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.attacks import ThreatModel
from tasks.metrics import EvaluationConfig, evaluate, isolation, measure
from tasks.metrics.isolation import untouched
from tasks.models.networks import digits_cnn
from tests.metrics.nets import L2, LINF, SMALL, Through, amid, assert_honest, boundary_distance, linear, shown


def wide(apart: float = 1.0) -> nn.Module:
    """Four million weights. What the two classes weigh is nearly the same where they are little apart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        last = nn.Linear(2048, 2)
        layers = [nn.Flatten(), nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), last]
        model = nn.Sequential(*layers).requires_grad_(False)
        last.weight[1] = last.weight[0] + apart * 0.02 * torch.randn(2048)
        last.bias.zero_()
    return model


@pytest.mark.parametrize(
    ("model", "dtype", "fast", "pays"),
    [
        (lambda: wide(), torch.float32, True, True),
        (lambda: wide(), torch.float32, False, False),  # hardware that is slow at it
        (lambda: wide(), torch.float64, True, False),
        (lambda: digits_cnn(), torch.float32, True, False),  # too small to be bound by arithmetic
        (lambda: wide(apart=1e-4), torch.float32, True, False),  # its answers become others
    ],
    ids=["wide", "slow", "double", "small", "other answers"],
)
def test_the_search_is_in_bf16_where_arithmetic_counts_and_answers_stay(monkeypatch, model, dtype, fast, pays):
    monkeypatch.setattr(isolation, "_fast_bf16", lambda device: fast)
    net, x = model().to(dtype).eval(), shown(64)[0].to(dtype)
    with untouched(net) as meter:
        assert isolation.pays_in_bf16(meter, x) is pays


COUNTED = """
import sys, torch
from torch import nn
from tasks.attacks import ThreatModel
from tasks.metrics import measure
from tasks.metrics.isolation import Arithmetic
from tasks.models.networks import digits_cnn, mlp

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(64, 10)

    def forward(self, x):
        z = x.flatten(2).squeeze(1).view(-1, 8, 8)
        return self.out(self.mix(z, z, z, need_weights=False)[0].flatten(1))

x = torch.rand(40, 1, 8, 8)
models = [digits_cnn().eval(), mlp(64, 10).eval(), Attention().eval()]
found = []
with torch.no_grad():
    for model in models:
        with Arithmetic() as counter:
            model(x)
        found.append(counter.flops)
measure(models[0], x, models[0](x).argmax(1), threat=ThreatModel(eps=0.1), suite=["margin"])
assert not {"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules), "the compiler was imported"

from torch.utils.flop_counter import FlopCounterMode
with torch.no_grad():
    for model, flops in zip(models, found, strict=True):
        with FlopCounterMode(display=False) as counter:
            model(x)
        assert flops == counter.get_total_flops() > 0, (flops, counter.get_total_flops())
"""


def test_arithmetic_is_counted_as_torch_counts_it_and_without_its_compiler():
    done = subprocess.run(
        [sys.executable, "-c", COUNTED], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-1000:]


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("network", ["hardened", "cnn"])
def test_a_search_in_bf16_finds_as_much_and_each_success_is_one_in_float32(network, threat, request):
    model, (x, y) = request.getfixturevalue(network), shown(200)
    coarse, fine = (measure(model, x, y, threat=threat, precision=kind) for kind in ("bf16", "fp32"))
    assert (coarse.precision, fine.precision) == ("bf16", "fp32")
    assert_honest(model, x, y, coarse)
    assert coarse.robust_accuracy == pytest.approx(fine.robust_accuracy, abs=0.01)


@pytest.mark.parametrize("threat", [SMALL, ThreatModel(norm="l2", eps=0.1), ThreatModel(norm="l1", eps=0.15)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_linear_model_in_any_precision_falls_where_it_must(dtype, threat):
    model = linear(3).to(dtype).float()
    x, y = amid(model)
    away = boundary_distance(model, x, y, threat)
    report, (found,) = evaluate(copy.deepcopy(model).to(dtype), x.to(dtype), y, EvaluationConfig(threats=(threat,)))
    assert report.threats[0].problems == ()
    assert found.fooled[away < 0.85 * threat.eps].all()
    assert not found.fooled[(away > 1.15 * threat.eps) & found.clean_correct].any()
    assert 20 < (found.fooled & found.clean_correct).sum() < 190


@pytest.mark.parametrize(
    "laid_out",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.stack([x, x], dim=1)[:, 1],
    ],
    ids=["channels-last", "transposed", "strided"],
)
def test_how_the_input_lies_in_memory_does_not_matter(cnn, laid_out):
    x, y = shown(60)
    same = laid_out(x.expand(-1, 3, -1, -1).contiguous())
    assert not same.is_contiguous()
    model = Through(cnn, before=lambda x: x.mean(1, keepdim=True))
    plainly, found = (measure(model, part, y, threat=LINF) for part in (same.contiguous(), same))
    assert_honest(model, same, y, found)
    assert torch.equal(found.fooled, plainly.fooled)


class Viewed(nn.Module):
    """Joins by view() what a convolution gives, which torch refuses where its channels lie last."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.look, self.say = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 64, 2)

    def forward(self, x):
        z = self.look(x).relu()
        return self.say(z.view(z.size(0), -1))


@pytest.mark.parametrize("precision", ["bf16", "auto"])
@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_a_model_that_cannot_take_channels_last_is_searched_in_bf16_without(monkeypatch, threat, precision):
    monkeypatch.setattr(isolation, "_fast_bf16", lambda device: True)
    monkeypatch.setattr(isolation, "WORTH_FLOPS", 1.0)
    model, x = Viewed(), torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        model(x.contiguous(memory_format=torch.channels_last))
    y = model(x).argmax(1)
    found = measure(model, x, y, threat=threat, precision=precision)
    assert found.precision == "bf16"
    assert_honest(model, x, y, found)
    assert found.fooled.sum() > 10


def test_images_lie_as_bf16_prefers_where_the_model_takes_them_so():
    laid: list[int] = []

    def seen(x):
        laid.append(len(x) * x.is_contiguous(memory_format=torch.channels_last))
        return x

    model, x = Through(nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten()), before=seen), torch.rand(20, 3, 8, 8)
    measure(model, x, model(x).argmax(1), threat=LINF, suite=["margin"], precision="bf16")
    assert max(laid) > 8
