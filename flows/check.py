"""A pull request's short tier: is one model above a floor? As few samples as it takes, and an exit code."""

import re
from typing import TYPE_CHECKING

from tasks.errors import WrongInput

if TYPE_CHECKING:
    from torch import nn

    from tasks.attacks import ThreatModel
    from tasks.metrics import Binarisation, EarlyDecision

REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<number>\d+)|@(?P<alias>[^/@]+))")


def check(
    model: str, dataset: str, *, threat: "ThreatModel", floor: float, suite: str, seed: int, planted: int
) -> "tuple[EarlyDecision, Binarisation | None]":
    """On which side of the floor the model is on the dataset's test split; with planted > 0, also whether the suite
    finds adversarial examples that are known to exist, on so many samples.

    Raises WrongInput, UnknownPart, DataMissing or ModelRejected for what cannot be checked.
    """
    from tasks.data import load
    from tasks.metrics import binarise, decide_early

    network, (x, y) = load_model(model), load(dataset)["test"]
    decision = decide_early(network, x, y, threat=threat, floor=floor, suite=suite, seed=seed)
    if not planted:
        return decision, None
    return decision, binarise(network, x, threat=threat, suite=suite, samples=planted, seed=seed)


def load_model(name: str) -> "nn.Module":
    """A model by 'package.module:function', or a registered version by 'models:/NAME/3' or 'models:/NAME@champion'."""
    from tasks.models import build, from_bytes
    from tasks.track import aliases, load_bytes, load_version

    if not name.startswith("models:"):
        return build(name)
    found = REGISTERED.fullmatch(name)
    if found is None:
        raise WrongInput(f"{name!r} names no registered model. Write models:/NAME/3 or models:/NAME@champion.")
    held = aliases(found["name"])
    number = int(found["number"]) if found["number"] else held.get(found["alias"])
    if number is None:
        known = ", ".join(f"@{alias}" for alias in held) or "none"
        raise WrongInput(f"no version of {found['name']!r} bears the alias {found['alias']!r}. Known: {known}.")
    stored, _ = load_version(found["name"], number)
    return from_bytes(stored.model, load_bytes(stored.weights), stored.digest)
