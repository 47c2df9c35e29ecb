"""The machine itself fails: a locked database, a full disk, a clock that jumps."""

import json
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.harness import (
    NAME,
    SMALL,
    assert_verifies,
    content,
    database,
    environment,
    redoubt,
    started,
    verdicts,
)

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3000)]


def test_a_database_that_others_lock_is_waited_for(fresh, undisturbed):
    with started(fresh, *SMALL) as run:
        for after, seconds in (("validate", 15), ("attack/baseline/test", 30)):  # MLflow itself waits for 20
            run.until(after)
            with closing(sqlite3.connect(fresh / "mlflow" / "mlflow.db", timeout=60, isolation_level=None)) as holder:
                holder.execute("BEGIN EXCLUSIVE")
                time.sleep(seconds)
                holder.execute("ROLLBACK")
        assert run.finish() == undisturbed.code, run.lines
    found = content(database(fresh))
    for what in undisturbed.content:
        assert found[what] == undisturbed.content[what], what
    assert_verifies(fresh)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, of 60 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte of the disk free."""
    ballast, piece = folder / "ballast", b"\0" * 65536
    with ballast.open("wb", buffering=0) as file:
        for size in (65536, 512):
            try:
                while True:
                    file.write(piece[:size])
            except OSError:
                continue
    return ballast


@pytest.mark.parametrize("after", ["validate", "train/baseline", "attack/baseline/test"])
def test_a_full_disk_is_told_and_with_room_again_the_same_command_passes(small_disk, undisturbed, after):
    home = small_disk / "home"
    with started(home, *SMALL) as run:
        run.until(after)
        ballast = fill(small_disk)
        code = run.finish()
    told = "\n".join(run.lines)
    assert code == 4, told
    assert "full" in told or "No space left" in told or "cannot write" in told, told
    ballast.unlink()
    ran = redoubt(home, *SMALL)
    assert ran.returncode == undisturbed.code, ran.stderr
    assert verdicts(home)[-1][1] == "pass"
    assert_verifies(home)


@dataclass(frozen=True)
class Clock:
    """The wall clock of processes, which a test sets; what they measure durations with goes on as it should."""

    library: Path
    file: Path

    def jump(self, days: int) -> None:
        """Let it be off by so many days from here on."""
        with self.file.open("r+b" if self.file.exists() else "wb") as file:
            file.write(struct.pack("q", days * 86400))

    def environment(self, days: int) -> dict[str, str]:
        """What a process needs to live by it; its Prefect server must too, so it is one of its own."""
        self.jump(days)
        return {"LD_PRELOAD": str(self.library), "WRONG_BY": str(self.file), "PREFECT_API_URL": ""}


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler: install Debian's packages gcc and libc6-dev")
    library, code = tmp_path / "clock.so", Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, code], check=True)
    return Clock(library, tmp_path / "wrong-by")


def test_a_clock_that_jumps_back_in_mid_run_changes_no_verdict(fresh, clock, undisturbed):
    with started(fresh, *SMALL, **clock.environment(0)) as run:
        run.until("attack/baseline/test")
        clock.jump(-400)
        assert run.finish() == undisturbed.code, run.lines
    found = content(database(fresh))
    for what in undisturbed.content:
        assert found[what] == undisturbed.content[what], what
    assert verdicts(fresh)[-1] == (2, "pass")
    assert_no_odd_seconds(fresh)
    assert_verifies(fresh)


def test_a_clock_that_is_400_days_wrong_is_told_and_loses_nothing(fresh, clock):
    assert redoubt(fresh, *SMALL).returncode == 0
    ask = ("evaluate", f"models:/{NAME}/2", "--again", "--json")
    behind = redoubt(fresh, *ask, **clock.environment(-400))
    assert (behind.returncode, "measured in the future" in behind.stderr) == (4, True), behind.stderr
    assert_verifies(fresh)

    ahead = redoubt(fresh, *ask, **clock.environment(400))  # by that clock an open finding is overdue
    said = json.loads(ahead.stdout)
    assert (ahead.returncode, said["verdict"]) == (1, "fail"), ahead.stderr
    assert "open for more than 90 days" in said["reasons"][0]
    assert_verifies(fresh, **clock.environment(400))
    assert_no_odd_seconds(fresh)

    right = redoubt(fresh, *ask)
    assert (right.returncode, "measured in the future" in right.stderr) == (4, True), right.stderr
    mend = right.stderr.strip().rpartition("mlflow.")[2]
    program = f"import mlflow; mlflow.{mend}"  # as the message says
    made = {"MLFLOW_TRACKING_URI": database(fresh)}
    subprocess.run([sys.executable, "-c", program], env=environment(fresh, **made), check=True)
    mended = redoubt(fresh, *ask)
    assert mended.returncode == 0, mended.stderr
    told = redoubt(fresh, "verify", NAME).stdout
    assert told.count("does not match:") == 1  # the evidence that was written by the wrong clock, and nothing else
    assert "which is in the future" in told


def assert_no_odd_seconds(home: Path) -> None:
    """No step took less than nothing, or days."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=database(home))
    experiment = client.get_experiment_by_name(NAME)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    took = {key: value for run in runs for key, value in run.data.metrics.items() if "seconds" in key}
    assert took
    assert all(0 <= value < 600 for value in took.values()), took
