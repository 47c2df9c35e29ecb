"""What a config gets wrong, told before anything is started, attacked or trained."""

from collections.abc import Callable, Iterator

from flows.config import EvaluateConfig, PipelineConfig
from tasks.data import Data, dataset_named, load_split
from tasks.defences import DEFENCES
from tasks.errors import WrongInput
from tasks.fetch import check_named
from tasks.lookup import lookup
from tasks.metrics.inputs import check_x
from tasks.metrics.pairs import check_classes
from tasks.models import MODELS, TrainingConfig, build, check_model


def check_parts(config: PipelineConfig | EvaluateConfig) -> None:
    """Raise WrongInput, a line for each, for names that mean nothing: of data, attacks, models, defences, floors."""
    looks: dict[str, Callable[[], object]] = {
        "dataset": lambda: dataset_named(config.dataset),
        "evaluation": config.evaluation.resolved_suite,
    }
    if isinstance(config, EvaluateConfig):
        looks["model"] = lambda: check_named(config.model)
    else:
        looks["policy.floors"] = lambda: _check_floors(config)
        for key, training in (("training", config.training), ("hardening", config.hardening)):
            looks |= _parts_of(key, training)
    mistakes = [f"{where}: {said}" for where, look in looks.items() for said in _said(look)]
    if mistakes:
        raise WrongInput("\n".join(dict.fromkeys(mistakes)))


def check_fit(config: PipelineConfig, data: Data) -> None:
    """Raise WrongInput where the validated data cannot be measured or trained on in the way that the config asks."""
    check_classes(config.evaluation.critical_pairs, data.classes)
    x, _ = load_split(data, "test")
    for threat in config.evaluation.threats:
        check_x(x, threat)
    for name in dict.fromkeys((config.training.model, config.hardening.model)):
        check_model(build(name), name, x[:2], data.classes)


def _parts_of(key: str, training: TrainingConfig) -> dict[str, Callable[[], object]]:
    """The look at each part of a training."""
    return {
        f"{key}.model": lambda: lookup("model", training.model, MODELS),
        f"{key}.defence": lambda: lookup("defence", training.defence, DEFENCES),
    }


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
