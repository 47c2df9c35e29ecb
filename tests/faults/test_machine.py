"""The machine itself fails: a locked database, a full disk, a clock that jumps."""

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.harness import NAME, SMALL, assert_verifies, content, database, redoubt, started, verdicts

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


def test_a_clock_that_jumps_by_400_days_changes_no_verdict(fresh):
    if not shutil.which("faketime"):
        pytest.skip("Debian's package faketime is not installed")
    assert redoubt(fresh, *SMALL).returncode == 0
    ask = ("evaluate", f"models:/{NAME}/2", "--json")
    for jump in ("+400d", "-400d"):
        ran = redoubt(fresh, *ask, "--again", before=("faketime", "-f", jump), PREFECT_API_URL="")
        assert ran.returncode == 0, ran.stderr
        assert_verifies(fresh)
    ran = redoubt(fresh, *SMALL)  # its champion was last measured in another time
    assert ran.returncode == 0, ran.stderr
    assert_verifies(fresh)
    assert {verdict for version, verdict in verdicts(fresh) if version in (2, 4)} == {"pass"}
    metrics = content(database(fresh))
    assert all(count == 1 for key, count in metrics["whole: metrics"].items() if key.startswith("seconds/"))
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=database(fresh))
    experiment = client.get_experiment_by_name(NAME)
    for run in client.search_runs([experiment.experiment_id]):
        for key, value in run.data.metrics.items():
            assert "seconds" not in key or 0 <= value < 600, (key, value)
    assert os.environ.get("FAKETIME") is None
