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
    there = torch.ones(2, device="board")
    attempts = {
        "two devices": lambda: there + torch.ones(2),
        "of two devices": lambda: torch.where(there > 0, torch.zeros(2), there),
        "generator of another device": lambda: there.normal_(generator=torch.Generator()),
    }
    for words, attempt in attempts.items():
        try:
            attempt()
        except RuntimeError as refused:
            assert words in str(refused), refused
        else:
            raise AssertionError(words)
    assert (there + torch.tensor(1.0)).cpu().tolist() == [2.0, 2.0]  # a single number is taken from anywhere
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
