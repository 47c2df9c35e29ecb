"""How long the commands over a model's past take: 200 versions, 5,000 runs in MLflow.

    .venv/bin/python infra/bench/history.py [VERSIONS] [RUNS]

Runs the recipe digits once on an empty store. Its two versions and their runs are then copied row by row, with other
numbers, until there are enough; the copies point to the artifacts of the first. Each command runs in a process of its
own, three times; the table shows the median and the longest. Ends with 1 where `history` takes LIMIT or more.
"""

import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = "digits"
OF_RUN = ("tags", "params", "metrics", "latest_metrics")
REPEATS = 3
LIMIT = 3.0  # seconds for `history`, in the median


def call(home: str, *words: str) -> tuple[float, str]:
    """Seconds that a command took, from start to end of its process, and what it printed."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    started = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "flows", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=kept | {"REDOUBT_HOME": home},
        check=False,
    )
    took = time.perf_counter() - started
    if ran.returncode > 2:
        sys.exit(f"redoubt {' '.join(words)}: {ran.stderr}")
    return took, ran.stdout


def copied(db: sqlite3.Connection, table: str, where: str, given: tuple, **changes: object) -> None:
    """Copy the rows of a table, some columns with other values."""
    cursor = db.execute(f"select * from {table} where {where}", given)
    names = [column[0] for column in cursor.description]
    rows = [{**dict(zip(names, row, strict=True)), **changes} for row in cursor.fetchall()]
    quoted, marks = ", ".join(f'"{name}"' for name in names), ", ".join(f":{name}" for name in names)
    db.executemany(f"insert into {table} ({quoted}) values ({marks})", rows)


def new_run(db: sqlite3.Connection, of: str) -> str:
    """A copy of a run with its metrics, parameters and tags, under an id of its own."""
    run_id = uuid.uuid4().hex
    copied(db, "runs", "run_uuid = ?", (of,), run_uuid=run_id)
    for table in OF_RUN:
        copied(db, table, "run_uuid = ?", (of,), run_uuid=run_id)
    return run_id


def other(share: dict, rng: random.Random) -> dict:
    """The share, moved by a few samples."""
    move = rng.uniform(-0.03, 0.03)
    return share | {end: min(1.0, max(0.0, share[end] + move)) for end in ("value", "lo", "hi")}


def grow(path: Path, versions: int, runs: int) -> None:
    """Copy until the store holds that many versions of the model and that many runs."""
    rng = random.Random(0)
    with sqlite3.connect(path) as db:
        db.execute("pragma foreign_keys = off")
        of = dict(db.execute("select version, run_id from model_versions where name = ?", (NAME,)))
        everything = [row[0] for row in db.execute("select run_uuid from runs")]
        for number in range(len(of) + 1, versions + 1):
            begin = 1 + number % 2
            run_id = new_run(db, of[begin])
            copied(db, "model_versions", "name = ? and version = ?", (NAME, begin), version=number, run_id=run_id)
            copied(db, "model_version_tags", "name = ? and version = ?", (NAME, begin), version=number)
            at = (datetime.now(UTC) + timedelta(minutes=number)).isoformat(timespec="seconds")
            for key, value in db.execute(
                "select key, value from model_version_tags "
                "where name = ? and version = ? and key like 'redoubt.record.%'",
                (NAME, number),
            ).fetchall():
                record = json.loads(value) | {"version": number, "run_id": run_id, "measured_at": at}
                record["threats"] = [threat | {"robust": other(threat["robust"], rng)} for threat in record["threats"]]
                db.execute(
                    "update model_version_tags set value = ? where name = ? and version = ? and key = ?",
                    (json.dumps(record), NAME, number, key),
                )
        missing = runs - db.execute("select count(*) from runs").fetchone()[0]
        for _ in range(missing):
            new_run(db, rng.choice(everything))


def main() -> int:
    """Make the store and print the table. The exit code."""
    versions, runs = (int(word) for word in (sys.argv[1:3] if len(sys.argv) > 2 else ("200", "5000")))
    with tempfile.TemporaryDirectory() as home:
        call(home, "run", NAME, "--json")
        store = Path(home) / "mlflow" / "mlflow.db"
        grow(store, versions, runs)
        with sqlite3.connect(store) as db:
            tables = ("model_versions", "runs", "metrics")
            there = [db.execute(f"select count(*) from {table}").fetchone()[0] for table in tables]
            run_id = db.execute(
                "select run_id from model_versions where name = ? and version = ?", (NAME, versions)
            ).fetchone()[0]
        print("{:,} versions, {:,} runs, {:,} metrics\n".format(*there))
        print(f"{'command':44}{'median, s':>10}{'longest, s':>12}")
        took: dict[tuple[str, ...], float] = {}
        for words in (
            ("history", NAME),
            ("history", NAME, "--json"),
            ("history", NAME, "--csv"),
            ("history", NAME, "--html"),
            ("compare", NAME, "1", "2"),
            ("compare", NAME, "1", "2", "--html"),
            ("report", f"{NAME}@champion"),
            ("findings", NAME),
            ("explain", run_id),
        ):
            seconds = [call(home, *words)[0] for _ in range(REPEATS)]
            took[words] = statistics.median(seconds)
            shown = " ".join(words).replace(run_id, "RUN")
            print(f"{shown:44}{took[words]:10.2f}{max(seconds):12.2f}", flush=True)
    return 1 if any(words[0] == "history" and median >= LIMIT for words, median in took.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
