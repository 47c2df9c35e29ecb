"""Who may import whom. A new module has to find its place here."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERBS = {
    *("announce", "audit", "candidates", "decide", "doctor", "evaluate", "fetch", "gpu", "ledger", "plan", "promote"),
    *("prove", "publish", "recall", "record", "replay", "reproduce", "reserve", "results", "shard", "track", "train"),
    *("validate", "verify", "vouch", "workers"),
}
BASE = {"errors", "files", "home", "locks", "lookup", "parts", "redact", "statistics"}
BELOW = {  # what each noun may import, besides the base and itself
    "attacks": set(),
    "data": set(),
    "defences": {"attacks"},
    "models": {"attacks", "defences"},
    "metrics": {"attacks", "data", "defences", "models"},
    "verdicts": {"attacks", "data", "models", "metrics"},
    "evidence": {"attacks", "data", "models", "metrics", "posture", "verdicts"},
    "posture": set(),
    "health": set(),
}
DOORS = {"mlflow": {"track"}, "great_expectations": {"validate"}, "prefect": VERBS}


def imports(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def complaints(place: str, source: str) -> list[str]:
    """What is wrong with a file's imports, a sentence each. place is its path below the root."""
    parts = Path(place).with_suffix("").parts
    in_flows, room = parts[0] == "flows", parts[1] if len(parts) > 1 else ""
    if not in_flows and room not in VERBS | BASE | set(BELOW) | {"__init__"}:
        return [f"{place} has no place: name it in test_layers.py as a verb or a noun"]
    found = []
    for name in sorted(imports(source)):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top in DOORS and not (in_flows and top == "prefect") and room not in DOORS[top]:
            found.append(f"{place} imports {name}; only {', '.join(sorted(DOORS[top]))} may import {top}")
        if top == "flows" and not in_flows:
            found.append(f"{place} imports {name}; tasks do not look up at flows")
        if top == "tasks" and target and room in BASE | set(BELOW) and not in_flows:
            allowed = BASE | ({room} | BELOW.get(room, set()) if room in BELOW else set())
            if target not in allowed:
                found.append(f"{place} imports {name}; {room} may import {', '.join(sorted(allowed))} only")
    return found


@pytest.mark.parametrize(
    "path", [p for top in ("flows", "tasks") for p in sorted((ROOT / top).rglob("*.py"))], ids=lambda p: p.name
)
def test_imports_point_downwards_and_frameworks_enter_by_their_door(path):
    assert complaints(path.relative_to(ROOT).as_posix(), path.read_text()) == []


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("tasks/attacks/x.py", "import mlflow"),
        ("tasks/metrics/x.py", "from prefect import task"),
        ("tasks/train.py", "import great_expectations as gx"),
        ("tasks/attacks/x.py", "from tasks.metrics import measure"),
        ("tasks/models/x.py", "from tasks.track import client"),
        ("tasks/train.py", "from flows.config import parse"),
        ("tasks/misc.py", ""),
    ],
)
def test_a_planted_violation_is_found(place, source):
    assert len(complaints(place, source)) == 1


@pytest.mark.parametrize("noun", ["attacks", "metrics", "models", "data", "verdicts"])
def test_a_noun_loads_no_framework(noun):
    code = (
        f"import sys, tasks.{noun}; print([m for m in ('prefect', 'mlflow', 'great_expectations') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.strip() == "[]"


def test_nothing_stands_at_the_top_but_what_the_design_names():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    top = {name.split("/")[0] for name in listed.splitlines() if not name.startswith(".")}
    assert top <= {"flows", "tasks", "tests", "infra", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}
