"""SIGKILL in each step: the same command comes to the same verdict, and the evidence holds at any moment."""

import json
import sys
import time

import pytest

from tests.faults.harness import (
    NAME,
    SMALL,
    STEPS,
    assert_verifies,
    content,
    database,
    open_runs,
    redoubt,
    started,
    verdicts,
)

KILLER = (sys.executable, "-m", "tests.faults.killer")
WITHIN = (  # a step, and the answer of the store that it does not survive: of the weak model's, of the hardened one's
    *(("validate_data", 2), ("decide", 2), ("decide", 5), ("decide", 10), ("enter", 1), ("enter", 3)),
    *(("record", 6), ("record", 12), ("record", 17), ("record", 25), ("record", 31), ("record", 36)),
    *(("promote", 1), ("promote", 2), ("promote", 3), ("publish", 2), ("publish", 6)),
)
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3000)]


def test_killed_after_each_step_in_turn_the_same_command_ends_with_the_same_verdict(fresh, undisturbed):
    for step in STEPS:
        with started(fresh, *SMALL) as running:
            running.until(step)
            running.kill()
        assert running.process.returncode == -9
        verified = redoubt(fresh, "verify", NAME)
        assert verified.returncode == 0 or "is registered" in verified.stderr or "no version" in verified.stderr, (
            step,
            verified.stdout + verified.stderr,
        )
    ran = redoubt(fresh, *SMALL, "--json")
    assert ran.returncode == undisturbed.code, ran.stderr
    assert_verifies(fresh)
    assert open_runs(database(fresh)) == 0
    assert verdicts(fresh)[-1][1] == undisturbed.said["verdict"]
    mine, its = content(database(fresh)), undisturbed.content
    for stage in ("baseline", "hardened-1"):
        for key in ("clean_accuracy", "robust_accuracy/linf_0.1"):
            assert mine[f"{stage}: metrics"][key] == its[f"{stage}: metrics"][key]


def test_killed_within_each_step_that_writes_the_evidence_holds_and_the_same_command_ends_right(fresh, undisturbed):
    for step, last in WITHIN:
        ran = redoubt(fresh, str(last), *SMALL, command=(*KILLER, step))
        assert ran.returncode == -9, (step, last, ran.stderr)
        verified = redoubt(fresh, "verify", NAME)
        assert verified.returncode == 0 or "has no version" in verified.stderr or "no model" in verified.stderr, (
            step,
            last,
            verified.stdout + verified.stderr,
        )
    ran = redoubt(fresh, *SMALL, "--json")
    assert ran.returncode == undisturbed.code, ran.stderr
    assert json.loads(ran.stdout)["verdict"] == undisturbed.said["verdict"]
    assert json.loads(ran.stdout)["champion"] == json.loads(ran.stdout)["version"]
    assert_verifies(fresh)
    assert open_runs(database(fresh)) == 0
    assert not list((fresh / "checkpoints").glob("*.pt"))


def test_killed_in_mid_training_and_in_mid_attack_it_goes_on_where_it_stood(fresh, undisturbed):
    with started(fresh, *SMALL) as running:
        running.until("validate")
        deadline = time.monotonic() + 900
        while not list((fresh / "checkpoints").glob("baseline-*.pt")):
            assert time.monotonic() < deadline
            assert running.process.poll() is None
            time.sleep(0.01)
        running.kill()
    assert not running.heard("train/baseline")
    with started(fresh, *SMALL) as running:
        running.until("train/baseline")
        while not list((fresh / "cells").glob("*.safetensors")):
            assert running.process.poll() is None
            time.sleep(0.01)
        running.kill()
    assert not running.heard("attack/baseline/test")
    ran = redoubt(fresh, *SMALL)
    assert ran.returncode == undisturbed.code, ran.stderr
    assert_verifies(fresh)
    mine, its = content(database(fresh)), undisturbed.content
    for what in ("versions", "aliases", "baseline: artifacts", "hardened-1: artifacts", "baseline: metrics"):
        assert mine[what] == its[what]
    assert open_runs(database(fresh)) == 0
