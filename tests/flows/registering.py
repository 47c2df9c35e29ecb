"""A model that somebody else has registered."""

import warnings

import torch

from flows.recipes import two_kinds
from tasks.data import load
from tasks.home import folder
from tasks.models import build
from tasks.track import client, registered


def register_weak(name: str, seed: int = 0) -> int:
    """A plain network on two-kinds, logged and registered by MLflow alone, as somebody else would."""
    torch.manual_seed(seed)
    (x, y), config = load("two-kinds")["train"], two_kinds().training
    network = build(config.model)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimiser.step()
    store = client()
    place = (folder("mlflow/artifacts") / "theirs").as_uri()
    found = store.get_experiment_by_name("theirs")
    experiment = found.experiment_id if found else store.create_experiment("theirs", artifact_location=place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own, when it is first used
        import mlflow.pytorch

        with mlflow.start_run(experiment_id=experiment):
            mlflow.pytorch.log_model(
                network.eval(),
                name="model",
                input_example=x[:2].numpy(),
                serialization_format="pt2",
                pip_requirements=["torch"],
                registered_model_name=name,
            )
    return registered(name)[-1].number
