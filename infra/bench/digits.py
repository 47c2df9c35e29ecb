"""Where the seconds of `redoubt run digits` go: per step, and per framework.

    .venv/bin/python infra/bench/digits.py [RECIPE]

Runs the recipe twice, first on empty stores, then on the same stores again, each in a process of its own. Inside it a
thread looks at the main thread every 5 ms. Where torch or Great Expectations is on its stack the time is theirs, so
torch.export counts as torch even where MLflow calls it; else it is the innermost package's, and waiting counts for
whoever waits. Our own tensor code (attacks, defences, fit) stands apart: its time is spent in torch's kernels.
"""

import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[2]
INTERVAL = 0.005
HEAVY = ("torch", "great_expectations")  # whose own work is not ours to save
LIGHT = ("mlflow", "prefect", "pandas", "matplotlib", "sklearn", "numpy", "jinja2")
PACKAGES = (*HEAVY, "tensor code", "redoubt", *LIGHT)
TENSORS = ("tasks/attacks/", "tasks/defences/", "tasks/models/fit.py", "tasks/metrics/isolation.py")


def owner(frame: FrameType | None) -> str:
    """Who is credited for a stack."""
    found = []
    while frame is not None:
        path = frame.f_code.co_filename
        parts = Path(path).parts
        if "site-packages" in parts:
            found.append(parts[parts.index("site-packages") + 1])
        elif path.startswith(str(ROOT)) and "bench" not in parts:
            found.append("tensor code" if any(part in path for part in TENSORS) else "redoubt")
        frame = frame.f_back
    found = [name for name in found if name in PACKAGES]
    return next((name for name in found if name in HEAVY), found[0] if found else "python")


def watched(words: list[str], report: str) -> None:
    """Run the command line in this process and write who spent how many seconds."""
    main, seconds, started = threading.main_thread().ident, Counter(), time.perf_counter()

    def look() -> None:
        last = time.perf_counter()
        while True:
            time.sleep(INTERVAL)
            frame, now = sys._current_frames().get(main), time.perf_counter()
            seconds[owner(frame)] += now - last
            last = now

    threading.Thread(target=look, daemon=True).start()
    sys.argv = ["redoubt", *words]
    try:
        runpy.run_module("flows", run_name="__main__")
    finally:
        Path(report).write_text(json.dumps({"wall": time.perf_counter() - started, "seconds": dict(seconds)}))


def measure(home: str, recipe: str) -> tuple[float, dict, dict]:
    """Wall seconds of one run from start to end of the process, seconds per framework, seconds per step."""
    report = Path(home) / "bench.json"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    environment |= {"REDOUBT_HOME": home}
    started = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, __file__, "--watched", str(report), "run", recipe, "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    wall = time.perf_counter() - started
    if ran.returncode not in (0, 1, 2):
        sys.exit(ran.stderr)
    said = json.loads(ran.stdout)
    print(f"{said['verdict']}: " + ", ".join(f"{s['stage']} {s['robust_accuracy']}" for s in said["stages"][-1:]))
    return wall, json.loads(report.read_text())["seconds"], said["seconds"]


def main() -> None:
    """Print both tables."""
    recipe = sys.argv[1] if len(sys.argv) > 1 else "digits"
    with tempfile.TemporaryDirectory() as home:
        (cold, cold_by, cold_steps), (warm, warm_by, warm_steps) = measure(home, recipe), measure(home, recipe)
    print(f"\n{'step':34}{'first run, s':>14}{'later run, s':>14}")
    for step in warm_steps:
        print(f"{step:34}{cold_steps.get(step, 0):14.1f}{warm_steps[step]:14.1f}")
    print(f"{'outside of the steps':34}{cold - sum(cold_steps.values()):14.1f}{warm - sum(warm_steps.values()):14.1f}")
    print(f"{'wall':34}{cold:14.1f}{warm:14.1f}")
    print(f"\n{'framework':34}{'first run, s':>14}{'later run, s':>14}")
    for name in sorted({*cold_by, *warm_by}, key=lambda name: -cold_by.get(name, 0)):
        print(f"{name:34}{cold_by.get(name, 0):14.1f}{warm_by.get(name, 0):14.1f}")
    rest = [sum(s for name, s in by.items() if name not in (*HEAVY, "tensor code")) for by in (cold_by, warm_by)]
    print(f"{'all but torch, tensor code and GX':34}{rest[0]:14.1f}{rest[1]:14.1f}")
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "flows", "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    print(f"\nredoubt --help: {time.perf_counter() - started:.2f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watched"]:
        sys.path.insert(0, str(ROOT))
        watched(sys.argv[3:], sys.argv[2])
    else:
        main()
