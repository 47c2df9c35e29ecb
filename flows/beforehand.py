"""What a config gets wrong, told before anything is started, attacked or trained."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

from flows.config import EvaluateConfig, PipelineConfig
from tasks.data import Data, dataset_named, load_split
from tasks.defences import DEFENCES
from tasks.errors import WrongInput
from tasks.fetch import check_named
from tasks.lookup import lookup
from tasks.metrics.inputs import check_x
from tasks.metrics.pairs import check_classes
from tasks.models import MODELS, TrainingConfig, build, check_model

Stage = Literal["training", "hardening"]


def check_parts(config: PipelineConfig | EvaluateConfig, *, here: bool = True) -> None:
    """Raise WrongInput, a line for each, for names that mean nothing: of data, attacks, models, defences, floors.

    here: whether files and modules must be on this machine; else only short names are looked at, which all know.
    """
    names, looks = dict[str, str](), dict[str, Callable[[], object]]()
    names["dataset"], looks["dataset"] = config.dataset, lambda: dataset_named(config.dataset)
    attacks = [attack.name for attack in config.evaluation.attacks]
    names["evaluation"], looks["evaluation"] = " ".join(attacks), config.evaluation.resolved_suite
    if isinstance(config, EvaluateConfig):
        names["model"], looks["model"] = config.model, lambda: check_named(config.model)
    else:
        looks["policy.floors"] = lambda: _check_floors(config)
        for key, training in _trainings(config, ("training", "hardening")):
            names[f"{key}.model"], names[f"{key}.defence"] = training.model, training.defence
            looks[f"{key}.model"] = partial(lookup, "model", training.model, MODELS)
            looks[f"{key}.defence"] = partial(lookup, "defence", training.defence, DEFENCES)
    known = [key for key in looks if here or not re.search(r"[:/]|\.csv$", names.get(key, ""))]
    mistakes = [f"{key}: {said}" for key in known for said in _said(looks[key])]
    if mistakes:
        raise WrongInput("\n".join(dict.fromkeys(mistakes)))


def check_fit(config: PipelineConfig, data: Data, *, trains: Sequence[Stage]) -> None:
    """Raise WrongInput where the validated data cannot be measured or trained on in the way that the config asks.

    trains: which of the two trainings the run may come to.
    """
    check_classes(config.evaluation.critical_pairs, data.classes)
    x, _ = load_split(data, "test")
    for threat in config.evaluation.threats:
        check_x(x, threat)
    seen = set[str]()
    for key, training in _trainings(config, trains):
        may = key == "training" or config.policy.max_rounds > 0
        if may and training.model not in seen:
            seen.add(training.model)
            for said in _said(lambda name=training.model: check_model(build(name), name, x[:2], data.classes)):  # type: ignore[misc]
                raise WrongInput(f"{key}.model: {said}")


def _trainings(config: PipelineConfig, keys: Sequence[Stage]) -> Iterator[tuple[Stage, TrainingConfig]]:
    """The trainings of these names."""
    return ((key, getattr(config, key)) for key in keys)


def _said(look: Callable[[], object]) -> Iterator[str]:
    """What a look has to complain of, if anything."""
    try:
        look()
    except WrongInput as error:
        yield str(error)


def _check_floors(config: PipelineConfig) -> None:
    """Raise WrongInput for a floor under a threat model that is not measured."""
    known = [threat.name for threat in config.evaluation.threats]
    unknown = sorted(set(config.policy.floors) - set(known))
    if unknown:
        raise WrongInput(f"{', '.join(unknown)} is not measured. Write one of: {', '.join(known)}.")
