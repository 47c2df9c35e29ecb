"""What a config gets wrong, told before anything is started, attacked or trained."""

import re
from collections.abc import Callable, Iterator
from functools import partial

from flows.config import EvaluateConfig, PipelineConfig
from tasks.attacks import as_suite
from tasks.data import Data, dataset_named, load_split
from tasks.defences import DEFENCES
from tasks.errors import WrongInput
from tasks.fetch import check_named
from tasks.lookup import lookup
from tasks.metrics.inputs import check_x
from tasks.metrics.pairs import check_classes
from tasks.models import MODELS, build, check_model

ELSEWHERE = re.compile(r"[:/]|\.csv$")  # in the name of what may be on another machine only


def check_parts(config: PipelineConfig | EvaluateConfig, *, here: bool = True) -> None:
    """Raise WrongInput, a line for each, for names that mean nothing: of data, attacks, models, defences, floors.

    here: whether files and modules must be on this machine; else only short names are looked at, which all know.
    """
    looks: list[tuple[str, str, Callable[[], object]]] = [  # a key, the name there, and the look at it
        ("dataset", config.dataset, lambda: dataset_named(config.dataset)),
        ("evaluation", config.evaluation.suite, partial(as_suite, config.evaluation.suite)),
    ]
    for attack in config.evaluation.attacks:
        looks.append(("evaluation", f"{attack.name} {attack.params.get('surrogate', '')}", attack.function))
    if isinstance(config, EvaluateConfig):
        looks.append(("model", config.model, lambda: check_named(config.model)))
    else:
        for key, training in (("training", config.training), ("hardening", config.hardening)):
            looks.append((f"{key}.model", training.model, partial(lookup, "model", training.model, MODELS)))
            looks.append((f"{key}.defence", training.defence, partial(lookup, "defence", training.defence, DEFENCES)))
    looks.append(("policy.floors", "", lambda: _check_floors(config)))
    known = [(key, look) for key, name, look in looks if here or not ELSEWHERE.search(name)]
    mistakes = [f"{key}: {said}" for key, look in known for said in _said(look)]
    if mistakes:
        raise WrongInput("\n".join(dict.fromkeys(mistakes)))


def check_fit(config: PipelineConfig, data: Data) -> None:
    """Raise WrongInput where the validated data cannot be measured or trained on in the way that the config asks.

    Of the networks only one that training does not look at itself before it begins.
    """
    check_classes(config.evaluation.critical_pairs, data.classes)
    x, _ = load_split(data, "test")
    for threat in config.evaluation.threats:
        check_x(x, threat)
    later = config.hardening.model
    if config.policy.max_rounds > 0 and later != config.training.model:
        for said in _said(lambda: check_model(build(later), later, x[:2], data.classes)):
            raise WrongInput(f"hardening.model: {said}")


def _said(look: Callable[[], object]) -> Iterator[str]:
    """What a look has to complain of, if anything."""
    try:
        look()
    except WrongInput as error:
        yield str(error)


def _check_floors(config: PipelineConfig | EvaluateConfig) -> None:
    """Raise WrongInput for a floor under a threat model that is not measured."""
    known = [threat.name for threat in config.evaluation.threats]
    unknown = sorted(set(config.policy.floors) - set(known))
    if unknown:
        instead = f"Write one of: {', '.join(known)}; or policy.floors={{}}, so that policy.floor holds for each."
        raise WrongInput(f"{', '.join(unknown)} is not measured. {instead}")
