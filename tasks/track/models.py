"""Models in MLflow: files without pickle, and what is needed to load them again."""

import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tasks.track.kept import download, load_bytes, log_bytes, log_dict
from tasks.track.places import place_of_run
from tasks.track.store import client, patient

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tasks.models import StoredModel

WEIGHTS, STORED = "weights/model.safetensors", "model.json"
ADDED = "registered_model_meta"  # MLflow writes it into what it downloads
MODEL_FILES = "model:"  # before a path of the logged model, where it stands beside paths of the run


def save_model(run_id: str, stage: str, name: str, model: "nn.Module", example: "Tensor") -> "StoredModel":
    """Keep the weights as safetensors and the model as an exported graph; neither holds a pickle.

    run_id is the stage's run; example is a batch x [2, ...] that the graph is traced with.
    """
    import torch
    from mlflow.entities import LoggedModelOutput

    from tasks.models import EXPORTING, StoredModel, digest_of, to_bytes

    store, raw = client(), to_bytes(model)
    log_bytes(run_id, raw, WEIGHTS)
    made = store.create_logged_model(
        place_of_run(run_id).experiment,
        name="model",
        source_run_id=run_id,
        params={"model": name, "stage": stage},
        model_type="classifier",
    )

    def keep() -> Any:
        """Fill the logged model; done again where the server went away meanwhile, and no second one comes of it."""
        import mlflow.pytorch

        return mlflow.pytorch.log_model(
            model,
            name="model",
            model_id=made.model_id,
            input_example=example.numpy(),
            serialization_format="pt2",
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
        )

    with EXPORTING, warnings.catch_warnings(), ThreadPoolExecutor(1) as apart:
        warnings.simplefilter("ignore")  # what torch.export and MLflow say of their own insides
        # In a thread of its own no run is active that the caller has begun, which would get the model as well.
        info = patient().ask(lambda: apart.submit(keep).result())
    store.log_outputs(run_id, models=[LoggedModelOutput(made.model_id, step=0)])
    stored = StoredModel(
        stage=stage,
        model=name,
        weights=f"runs:/{run_id}/{WEIGHTS}",
        digest=digest_of(raw),
        run_id=run_id,
        model_uri=f"models:/{info.model_id}",
    )
    keep_stored(run_id, stored)
    return stored


def keep_stored(run_id: str, stored: "StoredModel") -> None:
    """Say in the run which model it is about, so that it can be loaded from the run alone."""
    log_dict(run_id, stored.model_dump(mode="json"), STORED)


def load_stored(run_id: str) -> "StoredModel":
    """The model that a run is about."""
    from tasks.models import StoredModel

    return StoredModel.model_validate_json(load_bytes(f"runs:/{run_id}/{STORED}"))


def model_artifacts(uri: str) -> dict[str, bytes]:
    """Every file of a logged model, or of a run (runs:/<run>/), under its path."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = download(uri, scratch)
        files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
        return {path: file.read_bytes() for path, file in files.items() if path != ADDED}
