"""The engine on a device that is not the CPU: nothing is mixed, everything comes back, and the result is the same.

The device is made of software (accelerator.py), so no GPU is needed; what a real one's arithmetic adds is not seen.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from device_checks import CHECKS

HERE = Path(__file__).parent
MIXED = """
import accelerator, torch
accelerator.install()
with accelerator.Driver():
    there, here = torch.ones(2, device="board"), torch.ones(2)
    near, far, number = torch.tensor([1, 0]), torch.tensor([1, 0], device="board"), torch.tensor(1.0)
    distant, two = torch.tensor(1.0, device="board"), "two devices"
    refused = {
        "there + here": two,
        "here + distant": two,
        "number.clone().add_(distant)": two,
        "torch.add(there, there, out=here)": two,
        "torch.addcmul(there, number, number)": two,
        "torch.where(there > 0, here, there)": two,
        "torch.where(here > 0, there, there)": two,
        "there.clamp(number, number)": two,
        "torch.equal(there, here)": two,
        "torch.stack([distant, number])": two,
        "torch.cat([there, here])": two,
        "there.gather(0, near)": two,
        "here.gather(0, far)": two,
        "there.index_select(0, near)": two,
        "there.scatter(0, near, there)": two,
        "there.scatter(0, far, here)": two,
        "there.masked_fill(here > 0, 0.0)": two,
        "here.masked_fill(there > 0, 0.0)": two,
        "there.index_fill(0, near, 0.0)": two,
        "here[far]": two,
        "here[there > 0]": two,
        "here.index_put((far,), number)": two,
        "there.index_put((far,), here)": two,
        "there.index_put((near,), here)": two,
        "here.index_put((near,), there)": two,
        "there.__setitem__(there > 0, here)": two,
        "there @ here": two,
        "there.normal_(generator=torch.Generator())": "generator of another device",
    }
    for words, why in refused.items():
        try:
            eval(words)
        except RuntimeError as failure:
            assert why in str(failure), (words, failure)
        else:
            raise AssertionError(words)
    taken = {
        "there + number": [2.0, 2.0],
        "number - there": [0.0, 0.0],
        "there.clone().add_(number)": [2.0, 2.0],
        "torch.maximum(there, number)": [1.0, 1.0],
        "torch.where(there > 0, number, number)": [1.0, 1.0],
        "torch.where(there > 0, number, there)": [1.0, 1.0],
        "there.masked_fill(there > 0, 0.0)": [0.0, 0.0],
        "there.masked_fill(there > 0, number)": [1.0, 1.0],
        "there[near]": [1.0, 1.0],
        "there[here > 0]": [1.0, 1.0],
        "there[far]": [1.0, 1.0],
        "here[far[0]]": 1.0,
        "there.index_put((near,), there)": [1.0, 1.0],
        "there.index_put((near,), number)": [1.0, 1.0],
        "here.index_put((near,), distant)": [1.0, 1.0],
        "there.clone().copy_(here)": [1.0, 1.0],
        "here.clone().copy_(there)": [1.0, 1.0],
        "here.clone().fill_(distant)": [1.0, 1.0],
        "there.to(here)": [1.0, 1.0],
    }
    for words, result in taken.items():
        assert eval(words).cpu().tolist() == result, words
    there[there > 0] = 0.0  # a number of Python's
    there[1:] = here[1:]
    assert there.cpu().tolist() == [0.0, 1.0]
"""


def ran(*arguments: str) -> str:
    """What a Python process of its own prints: torch is told of a device once and for all."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, object]]:
    rows = map(json.loads, ran(str(HERE / "accelerator.py")).splitlines())
    return {row["check"]: row for row in rows}


@pytest.mark.parametrize("check", CHECKS)
def test_on_another_device_the_same_is_found_and_nothing_is_mixed(found, check):
    assert found[check]["device"] == found[check]["cpu"]


def test_the_device_of_these_tests_refuses_what_a_gpu_refuses():
    ran("-c", MIXED)
