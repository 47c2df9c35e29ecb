"""What an evaluation leaves in its run: its numbers, its report, each sample's outcome, what fooled it."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.files import read_arrays
from tasks.track import as_json, load_bytes, log_files, log_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.data import Data
    from tasks.metrics import Outcomes, RobustnessReport, ThreatReport
    from tasks.models import StoredModel

REPORT, VERDICT, ASKED, REPLAY = "report.json", "verdict.json", "evaluation.json", "replay.json"
WARM = "warm"  # the folder of the examples that a warm start began at
CARD, BOM = "model-card.md", "ml-bom.json"
PAGE, STORY = "report.html", "story.json"
COLUMNS = ("row", "y", "clean_correct", "fooled", "fooled_by", "prediction")


def save_evaluation(
    stored: "StoredModel",
    data: "Data",
    report: "RobustnessReport",
    outcomes: Sequence["Outcomes"],
    *,
    rows: "Tensor",
    x: "Tensor",
    y: "Tensor",
) -> None:
    """Keep a report in its model's run.

    rows [N] are the places of the measured samples x [N, ...], y [N] in their split. What was measured on select
    bears that name.
    """
    prefix = "" if report.split == "test" else f"{report.split}/"
    values = {f"{prefix}{key}": value for key, value in report.metrics().items()}
    files = {f"{prefix}{REPORT}": as_json(report.model_dump(mode="json"))}
    tables: list[dict[str, str]] = []  # what makes MLflow show a JSON file as a table
    for found, threat in zip(outcomes, report.threats, strict=True):
        name = f"{prefix}{found.threat.name}"
        tables.append({"path": f"outcomes/{name}.json", "type": "table"})
        files[tables[-1]["path"]] = _table(found, rows, y).encode()
        files[f"adversarial/{name}.npz"] = _adversarial(found, rows, x, y)
        for pair, flipped in _flipped(found, threat, rows, x, y).items():
            files[f"adversarial/{name}-{pair}.npz"] = flipped
    log_files(stored.run_id, files)
    log_metrics(stored.run_id, values, model=stored, data=data, tags={"mlflow.loggedArtifacts": json.dumps(tables)})


def load_report(run_id: str) -> "RobustnessReport":
    """The report of a run, measured on test."""
    from tasks.metrics import RobustnessReport

    return RobustnessReport.model_validate_json(load_bytes(f"runs:/{run_id}/{REPORT}"))


def load_json(run_id: str, path: str) -> Any:
    """What a JSON artifact holds."""
    return json.loads(load_bytes(f"runs:/{run_id}/{path}"))


def load_adversarial(run_id: str, threat: str) -> dict[str, np.ndarray]:
    """What fooled a run's model on test: rows [F], x [F, ...], x_adv [F, ...], y [F], prediction [F]."""
    return load_arrays(load_bytes(f"runs:/{run_id}/adversarial/{threat}.npz"))


def load_arrays(raw: bytes) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; a pickle in it is refused."""
    return read_arrays(raw)


def load_outcomes(run_id: str, threat: str) -> dict[str, np.ndarray]:
    """What each of the N measured samples of test came to: row, y, clean_correct, fooled, fooled_by, prediction."""
    table = load_json(run_id, f"outcomes/{threat}.json")
    columns: Mapping[str, Any] = dict(zip(table["columns"], zip(*table["data"], strict=True), strict=True))
    return {name: np.array(column) for name, column in columns.items()}


def to_npz(**arrays: np.ndarray) -> bytes:
    """The arrays as an .npz file."""
    raw = io.BytesIO()
    np.savez_compressed(raw, **arrays)  # type: ignore[arg-type]  # numpy's stubs take the arrays for a flag
    return raw.getvalue()


def _table(found: "Outcomes", rows: "Tensor", y: "Tensor") -> str:
    """The samples' outcomes as MLflow shows tables: one row each."""
    by = np.full(len(rows), "", dtype=object)
    for attack in found.attacks:
        by[attack.fooled.numpy()] = attack.name
    columns = (rows, y, found.clean_correct, found.fooled, by, found.prediction)
    data = list(zip(*(column.tolist() for column in columns), strict=True))
    return json.dumps({"columns": COLUMNS, "data": data})


def _adversarial(found: "Outcomes", rows: "Tensor", x: "Tensor", y: "Tensor") -> bytes:
    hit = found.fooled & found.clean_correct
    arrays = {"rows": rows, "x": x, "x_adv": found.x_adv, "y": y, "prediction": found.prediction}
    return to_npz(**{name: array[hit].numpy() for name, array in arrays.items()})


def _flipped(found: "Outcomes", threat: "ThreatReport", rows: "Tensor", x: "Tensor", y: "Tensor") -> dict[str, bytes]:
    """What flipped each critical pair, under names like 3-to-8: the same arrays as what fooled."""
    files, begin = {}, 0
    for pair in threat.pairs:
        at, count = list(pair.rows), len(pair.rows)
        if count and found.flips is not None:
            arrays = {"rows": rows[at].numpy(), "x": x[at].numpy(), "y": y[at].numpy()}
            x_adv = found.flips[begin : begin + count].numpy()
            files[f"{pair.source}-to-{pair.target}"] = to_npz(
                **arrays, x_adv=x_adv, prediction=np.full(count, pair.target)
            )
        begin += count
    return files
