"""What an evaluation leaves in its run: its numbers, its report, each sample's outcome, what fooled it."""

import io
import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from tasks.data import Data
from tasks.metrics import Outcomes, RobustnessReport
from tasks.models import StoredModel
from tasks.track import REPORT, load_bytes, log_bytes, log_dict, log_metrics, log_text, set_tags


def save_evaluation(
    stored: StoredModel, data: Data, report: RobustnessReport, outcomes: Sequence[Outcomes], rows: Tensor
) -> None:
    """Keep a report in its model's run.

    rows [N] are the places of the measured samples in their split. What was measured on select bears that name.
    """
    prefix = "" if report.split == "test" else f"{report.split}/"
    values = {f"{prefix}{key}": value for key, value in report.metrics().items()}
    log_metrics(stored.run_id, values, model=stored, data=data)
    log_dict(stored.run_id, report.model_dump(mode="json"), f"{prefix}{REPORT}")
    tables: list[dict[str, str]] = []  # what makes MLflow show a JSON file as a table
    for found in outcomes:
        name = f"{prefix}{found.threat.name}"
        tables.append({"path": f"outcomes/{name}.json", "type": "table"})
        log_text(stored.run_id, _table(found, rows).to_json(orient="split", index=False), tables[-1]["path"])
        log_bytes(stored.run_id, _adversarial(found, rows), f"adversarial/{name}.npz")
    set_tags(stored.run_id, {"mlflow.loggedArtifacts": json.dumps(tables)})


def load_adversarial(run_id: str, threat: str) -> dict[str, np.ndarray]:
    """What fooled a stage's model on test: rows [F], x_adv [F, ...], prediction [F]."""
    raw = io.BytesIO(load_bytes(f"runs:/{run_id}/adversarial/{threat}.npz"))
    with np.load(raw, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def load_outcomes(run_id: str, threat: str) -> pd.DataFrame:
    """What each of the N measured samples of test came to: row, clean_correct, fooled, fooled_by, prediction."""
    table = json.loads(load_bytes(f"runs:/{run_id}/outcomes/{threat}.json"))
    return pd.DataFrame(table["data"], columns=table["columns"])


def _table(found: Outcomes, rows: Tensor) -> pd.DataFrame:
    by = np.full(len(rows), "", dtype=object)
    for attack in found.attacks:
        by[attack.fooled.numpy()] = attack.name
    return pd.DataFrame(
        {
            "row": rows.numpy(),
            "clean_correct": found.clean_correct.numpy(),
            "fooled": found.fooled.numpy(),
            "fooled_by": by,
            "prediction": found.prediction.numpy(),
        }
    )


def _adversarial(found: Outcomes, rows: Tensor) -> bytes:
    hit = found.fooled & found.clean_correct
    raw = io.BytesIO()
    np.savez_compressed(
        raw, rows=rows[hit].numpy(), x_adv=found.x_adv[hit].numpy(), prediction=found.prediction[hit].numpy()
    )
    return raw.getvalue()
