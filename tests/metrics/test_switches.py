"""While a model is measured a GPU repeats itself to the bit; afterwards torch is as its user had set it.

A CPU build of torch keeps the settings too, so no GPU is needed.
"""

import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from torch import nn

from tasks.metrics.isolation import untouched
from tasks.metrics.switches import exact_kernels

cudnn, matmul, mkldnn = torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
PARTS = (matmul, mkldnn, cudnn.conv, cudnn.rnn)
EXACT = {"deterministic": True, "benchmark": False, "older": (False, False, "highest"), "newer": ["ieee"] * 4}
USERS = {  # what a user may have set
    "nothing": lambda: None,
    "faster": lambda: (setattr(cudnn, "benchmark", True), setattr(cudnn, "deterministic", True)),
    "TF32": lambda: setattr(matmul, "allow_tf32", True),
    "no TF32": lambda: setattr(cudnn, "allow_tf32", False),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "new TF32": lambda: setattr(matmul, "fp32_precision", "tf32"),
    "new IEEE": lambda: setattr(cudnn.conv, "fp32_precision", "ieee"),
    "new bfloat16 on the CPU": lambda: setattr(mkldnn, "fp32_precision", "bf16"),
    "TF32 everywhere": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "old and new": lambda: (torch.set_float32_matmul_precision("high"), setattr(matmul, "fp32_precision", "ieee")),
}


def read(setting) -> object:
    """What it is, or that torch refuses to say."""
    with suppress(RuntimeError):
        return setting()
    return "refused"


def settings() -> dict[str, object]:
    older = (lambda: matmul.allow_tf32, lambda: cudnn.allow_tf32, torch.get_float32_matmul_precision)
    return {
        "deterministic": cudnn.deterministic,
        "benchmark": cudnn.benchmark,
        "older": tuple(read(setting) for setting in older),
        "newer": [part.fp32_precision for part in PARTS],
    }


@pytest.fixture(autouse=True)
def _as_torch_begins():
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = True, False, False
    matmul.fp32_precision = mkldnn.fp32_precision = "none"
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32"


@pytest.mark.parametrize("user", USERS)
def test_kernels_are_exact_inside_and_the_user_s_own_again_afterwards(user):
    USERS[user]()
    before = settings()
    with exact_kernels():
        assert settings() == EXACT
    assert settings() == before
    with pytest.raises(ZeroDivisionError), exact_kernels():
        raise ZeroDivisionError
    assert settings() == before


def test_a_model_is_measured_by_exact_kernels_where_there_is_a_gpu(monkeypatch):
    before = settings()
    with untouched(nn.Linear(2, 2)):
        assert settings() == before  # there is none
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with untouched(nn.Linear(2, 2)):
        assert settings() == EXACT
    assert settings() == before
    with pytest.raises(ZeroDivisionError), untouched(nn.Linear(2, 2)):
        raise ZeroDivisionError
    assert settings() == before


def test_every_gpu_that_is_awake_draws_on_as_before_and_not_only_those_that_hold_weights(monkeypatch):
    states = {0: 10, 1: 11, 2: 12}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: state}))
    with untouched(nn.Linear(2, 2)):
        states.update({0: 0, 1: 0, 2: 0})
    assert states == {0: 10, 1: 11, 2: 12}


def test_a_gpu_that_sleeps_is_left_asleep_and_begins_with_the_user_s_seed(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: pytest.fail("it was waked"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        with untouched(nn.Linear(2, 2)):
            torch.manual_seed(7)
    assert seeds[-1] == 5


def test_no_setting_warns_of_being_old():
    code = "from tasks.metrics.switches import exact_kernels\nwith exact_kernels(): pass"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
