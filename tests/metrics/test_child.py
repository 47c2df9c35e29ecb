"""An attack of the user's own runs in a process of its own: the same bits, an end, and nothing left behind."""

import faulthandler
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tasks.metrics.foreign
from tasks.attacks import ATTACKS, AttackConfig, Suite, ThreatModel
from tasks.metrics import EvaluationConfig, evaluate, measure
from tasks.metrics.child import Failed, Stopped, can_fork, in_child
from tasks.verdicts import Policy, judge

LINF = ThreatModel(eps=0.1)
ROOT = Path(__file__).parents[2]
FOUND = ("fooled", "x_adv", "nearest", "margin", "prediction", "forward_samples", "backward_samples", "problems")

pytestmark = pytest.mark.skipif(not can_fork(), reason="beside a GPU attacks run in the same process")


def pgd(model, x, y, *, threat, rng):
    return ATTACKS["pgd"](model, x, y, threat=threat, rng=rng)


def lucky(model, x, y, *, threat, rng):
    """Meets on its way what it does not return, and draws."""
    for _ in range(3):
        model((x + threat.eps * (2 * torch.rand(x.shape, generator=rng) - 1)).clamp(*threat.bounds))
    return x.clone()


def sleeps(model, x, y, *, threat, rng):
    time.sleep(1000)


def spins(model, x, y, *, threat, rng):
    while True:
        pass


def asks_for_ever(model, x, y, *, threat, rng):
    while True:
        model(x)


def has_a_child(model, x, y, *, threat, rng):
    subprocess.run([sys.executable, "-c", f"import time; time.sleep(1000)  # {os.environ['MARK']}"], check=True)


def exits(model, x, y, *, threat, rng):
    os._exit(0)


def crashes(model, x, y, *, threat, rng):
    faulthandler.disable()  # pytest's would tell all of it
    os.kill(os.getpid(), signal.SIGSEGV)


def raises(model, x, y, *, threat, rng):
    raise RuntimeError("out of ideas")


def nothing(model, x, y, *, threat, rng):
    return None


def writes(model, x, y, *, threat, rng):
    with torch.no_grad():
        x.add_(1)
        y.add_(1)
        model.model.model[0].weight.add_(100)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
    torch.manual_seed(7)
    sys.modules[__name__].LINF = None
    return (x - 1).clone()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).requires_grad_(False)


@pytest.fixture(scope="module")
def samples(model) -> tuple[Tensor, Tensor]:
    x = torch.rand(600, 6, generator=torch.Generator().manual_seed(1))  # two cells
    return x, model(x).argmax(1)


class Wavering(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        z = self.model(x)
        return z + 0.05 * torch.randn(z.shape)


def own(name: str, samples: str = "all") -> AttackConfig:
    return AttackConfig(name=f"{__name__}:{name}", samples=samples)


@pytest.mark.parametrize("how", [{}, {"draws": 2}, {"draws": 2, "reseed": True}], ids=["plain", "drawn", "reseeded"])
def test_what_is_found_apart_is_what_is_found_in_the_same_process(model, samples, monkeypatch, how):
    model = Wavering(model) if how else model
    x, y = (part[:80] for part in samples)
    attacks = (own("lucky"), own("pgd", "drawn"), own("lucky", "drawn"), AttackConfig(name="fgsm"))
    suite = Suite(name="turns", attacks=attacks, passes=60)  # which go on with their draws
    apart = measure(model, x, y, threat=LINF, suite=suite, **how)
    monkeypatch.setattr(tasks.metrics.foreign, "can_fork", lambda: False)
    here = measure(model, x, y, threat=LINF, suite=suite, **how)
    assert apart.problems == ()
    assert 0 < apart.robust_accuracy < 1
    for name in FOUND:
        mine, its = getattr(apart, name), getattr(here, name)
        assert torch.equal(mine, its) if isinstance(mine, Tensor) else mine == its, name
    for one, other in zip(apart.attacks, here.attacks, strict=True):
        for field in fields(one):
            mine, its = getattr(one, field.name), getattr(other, field.name)
            assert field.name == "seconds" or (torch.equal(mine, its) if isinstance(mine, Tensor) else mine == its)


@pytest.mark.parametrize("name", ["sleeps", "spins", "asks_for_ever"])
def test_one_that_hangs_is_stopped_once_named_and_voids_the_number(model, samples, name):
    config = EvaluationConfig(threats=(LINF,), suite="quick", attacks=(own(name),), attack_seconds=0.4)
    x, y = samples
    started = time.monotonic()
    report, _ = evaluate(model, x, y, config)
    assert time.monotonic() - started < 20
    assert f"{__name__}:{name}: was stopped after 0.4 s" in report.threats[0].problems
    verdict = judge(report, Policy(floor=0, clean_floor=0))
    assert verdict.outcome == "cannot tell"
    assert any("was stopped after 0.4 s" in reason for reason in verdict.reasons)


def test_one_that_was_stopped_is_not_begun_on_the_cells_that_follow(model, samples):
    started = time.monotonic()
    found = measure(model, *samples, threat=LINF, suite=[own("sleeps"), "fgsm"], attack_seconds=1.5)
    assert time.monotonic() - started < 2.9
    (tried,) = [row.tried for row in found.attacks if row.error]
    assert tried.sum() == 512


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("exits", r"ended its process \(exit code 0\)"),
        ("crashes", r"ended its process \(killed by SIGSEGV\)"),
        ("raises", "raised RuntimeError: out of ideas"),
        ("nothing", "raised TypeError: returned NoneType, not a tensor"),
    ],
)
def test_one_that_dies_is_named_and_the_others_run_on(model, samples, name, says):
    import re

    found = measure(model, *samples, threat=LINF, suite=[own(name), "pgd"])
    (problem,) = found.problems
    assert re.fullmatch(f"{__name__}:{name}: {says}", problem)
    assert found.robust_accuracy < 1


def test_what_it_writes_stays_with_it(model, samples):
    kept = [part.clone() for part in (*samples, *model.state_dict().values())]
    drawn = torch.get_rng_state()
    found = measure(model, *samples, threat=LINF, suite=[own("writes")])
    assert not any(p.requires_grad for p in model.parameters())
    for now, before in zip((*samples, *model.state_dict().values()), kept, strict=True):
        assert torch.equal(now, before)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert LINF is not None
    assert found.problems == ()
    assert found.robust_accuracy == 1


def running(mark: str) -> list[str]:
    """The commands of this machine's processes that hold the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if mark in words and path.parent.name != str(os.getpid()):
            found.append(words)
    return found


def test_what_it_started_ends_with_it(model, samples, monkeypatch):
    monkeypatch.setenv("MARK", mark := f"started-by-{os.getpid()}-{time.time_ns()}")
    seen: list[str] = []
    real = tasks.metrics.foreign.in_child

    def watched(work, *, seconds):
        import threading

        looks = threading.Timer(seconds * 0.8, lambda: seen.extend(running(mark)))
        looks.start()
        try:
            return real(work, seconds=seconds)
        finally:
            looks.join()

    monkeypatch.setattr(tasks.metrics.foreign, "in_child", watched)
    found = measure(model, *samples, threat=LINF, suite=[own("has_a_child")], attack_seconds=2)
    assert "was stopped" in found.problems[0]
    assert seen  # it was there
    deadline = time.monotonic() + 3
    while running(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running(mark) == []


ORPHAN = """
import os, sys, time
from tasks.metrics.child import in_child
def work():
    print(os.getpid(), flush=True)
    time.sleep(1000)
in_child(work, seconds=1000)
"""


def test_it_ends_when_its_maker_is_killed():
    maker = subprocess.Popen([sys.executable, "-c", ORPHAN], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    child = int(maker.stdout.readline())
    maker.kill()
    maker.communicate()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_result_larger_than_a_pipe_comes_back_whole_and_a_slow_one_is_stopped():
    big = torch.arange(300_000.0)
    tensors, values = in_child(lambda: ({"big": big, "none": big[:0]}, {"a": [1, None]}), seconds=20)
    assert torch.equal(tensors["big"], big)
    assert (tensors["none"].shape, values) == ((0,), {"a": [1, None]})
    with pytest.raises(Stopped, match=r"after 0\.2 s"):
        in_child(lambda: time.sleep(5), seconds=0.2)
    with pytest.raises(Failed, match="raised KeyError"):
        in_child(lambda: {}["x"], seconds=5)


def test_beside_a_gpu_the_model_is_refused_after_the_time(model, samples, monkeypatch):
    monkeypatch.setattr(tasks.metrics.foreign, "can_fork", lambda: False)
    started = time.monotonic()
    found = measure(model, *samples, threat=LINF, suite=[own("asks_for_ever"), "pgd"], attack_seconds=0.3)
    assert time.monotonic() - started < 10
    assert found.problems == (f"{__name__}:asks_for_ever: was stopped after 0.3 s",)
    assert found.robust_accuracy < 1  # the attack after it is not refused the model
