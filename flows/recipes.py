"""Runs that have a name. A recipe is a function that returns a whole config; a YAML file is one that a user wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.config import PipelineConfig, parse
from tasks.attacks import ThreatModel
from tasks.data import DataContract
from tasks.errors import WrongInput
from tasks.files import LARGEST, read_yaml
from tasks.lookup import lookup
from tasks.metrics import EvaluationConfig
from tasks.models import TrainingConfig
from tasks.verdicts import Policy


def digits() -> PipelineConfig:
    """scikit-learn's handwritten digits, a small CNN, L-inf and L2. Works offline."""
    linf, l2 = ThreatModel(norm="linf", eps=0.15), ThreatModel(norm="l2", eps=0.5)
    training = TrainingConfig(model="digits-cnn", threat=linf, epochs=15, lr=4e-3)
    return PipelineConfig(
        name="digits",
        dataset="digits",
        contract=DataContract(shape=(1, 8, 8), classes=10, min_class_share=0.05),
        training=training,
        hardening=training.model_copy(update={"defence": "adversarial", "epochs": 24}),
        evaluation=EvaluationConfig(threats=(linf, l2)),
        policy=Policy(floor=0.6, clean_floor=0.9),
    )


def mnist() -> PipelineConfig:
    """MNIST from its four IDX files, a small CNN, L-inf 0.2 and L2 2.0 on 1,000 test images."""
    linf, l2 = ThreatModel(norm="linf", eps=0.2), ThreatModel(norm="l2", eps=2.0)
    training = TrainingConfig(model="mnist-cnn", threat=linf, epochs=2, lr=3e-3)
    return PipelineConfig(
        name="mnist",
        dataset="mnist",
        contract=DataContract(shape=(1, 28, 28), classes=10, min_class_share=0.05),
        training=training,
        hardening=training.model_copy(update={"defence": "adversarial", "epochs": 3}),
        evaluation=EvaluationConfig(threats=(linf, l2), samples=1000),
        policy=Policy(floor=0.5, clean_floor=0.95),
    )


def phishing() -> PipelineConfig:
    """UCI Phishing Websites from a CSV, an MLP on features scaled to 0..1, L-inf 0.1 and L2 0.3.

    The features are categories, so half of the rows occur more than once; equal rows never part between splits.
    """
    linf, l2 = ThreatModel(norm="linf", eps=0.1), ThreatModel(norm="l2", eps=0.3)
    training = TrainingConfig(model="phishing-mlp", threat=linf, epochs=15, lr=5e-3)
    return PipelineConfig(
        name="phishing",
        dataset="phishing",
        contract=DataContract(shape=(30,), classes=2, min_class_share=0.2, max_duplicate_share=0.6),
        training=training,
        hardening=training.model_copy(update={"defence": "adversarial", "epochs": 20}),
        evaluation=EvaluationConfig(threats=(linf, l2)),
        policy=Policy(floor=0.8, clean_floor=0.88),
    )


def two_kinds() -> PipelineConfig:
    """One strong feature and 200 fragile ones: the verdict is known in advance (Tsipras et al., 2019)."""
    linf = ThreatModel(norm="linf", eps=0.1)
    training = TrainingConfig(model="two-kinds-mlp", threat=linf, epochs=6, lr=1e-2, batch_size=64)
    return PipelineConfig(
        name="two-kinds",
        dataset="two-kinds",
        contract=DataContract(shape=(201,), classes=2, min_class_share=0.4),
        training=training,
        hardening=training.model_copy(update={"defence": "adversarial"}),
        evaluation=EvaluationConfig(threats=(linf,)),
        policy=Policy(floor=0.9, clean_floor=0.9),
    )


RECIPES: dict[str, Callable[[], PipelineConfig]] = {
    "digits": digits,
    "mnist": mnist,
    "phishing": phishing,
    "two-kinds": two_kinds,
}


def configured(recipe: str, changes: tuple[str, ...]) -> PipelineConfig:
    """The config of a recipe or a YAML file, with the changes. Raises WrongInput."""
    if Path(recipe).suffix in (".yaml", ".yml"):
        try:
            with Path(recipe).open(encoding="utf-8") as file:
                values: Any = read_yaml(file.read(LARGEST + 1))
        except FileNotFoundError:
            raise WrongInput(f"{recipe} does not exist. Start one with: redoubt config digits > {recipe}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise WrongInput(f"{recipe} is no readable YAML: {error}") from error
        except WrongInput as error:
            raise WrongInput(f"{recipe}: {error}") from error
        if not isinstance(values, dict):
            raise WrongInput(f"{recipe} must hold keys and values. Start one with: redoubt config digits > {recipe}")
    elif Path(recipe).suffix.lower() in (".toml", ".json", ".ini", ".cfg"):
        raise WrongInput(f"{recipe} is no recipe. A config is written in YAML: name the file .yaml or .yml.")
    else:
        values = lookup("recipe", recipe, RECIPES)().model_dump(mode="json")
    for text in changes:
        change(values, text)
    return parse(values)


def change(values: dict[str, Any], setting: str) -> None:
    """Put KEY=VALUE into the nested values, e.g. policy.floor=0.7. Raises WrongInput."""
    path, equals, text = setting.partition("=")
    if not equals:
        raise WrongInput(f"--set {setting}: write KEY=VALUE, e.g. --set policy.floor=0.7")
    try:
        value = read_yaml(text)
    except WrongInput as error:
        raise WrongInput(f"--set {path}=...: {error}") from error
    place: Any = values
    parts = path.split(".")
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth])
        key: Any = part
        if isinstance(place, list):
            if not (part.isdigit() and int(part) < len(place)):
                raise WrongInput(f"--set {setting}: {where} holds {len(place)} entries; name one from 0.")
            key = int(part)
        elif not isinstance(place, dict):
            raise WrongInput(f"--set {setting}: {where} holds no keys, but a value: {place!r}")
        if depth == len(parts) - 1:
            place[key] = value
        else:
            place = place[key] if isinstance(place, list) else place.setdefault(key, {})
