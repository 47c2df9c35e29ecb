"""Everything that a run is made of, as one frozen object: the Prefect form shows it, MLflow keeps it."""

from collections.abc import Iterator, Mapping
from typing import Any, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from tasks.attacks import ThreatModel
from tasks.data import DataContract
from tasks.errors import WrongInput
from tasks.lookup import REGISTERED, did_you_mean
from tasks.metrics import EvaluationConfig
from tasks.models import TrainingConfig
from tasks.redact import credentials_in
from tasks.verdicts import Policy

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
ANY_NAME = r"^[^\s./:@'\"\\][^/:@'\"\\\x00-\x1f]{0,199}$"  # others register models under names that we would not give
Config = TypeVar("Config", bound=BaseModel)


class EvaluateConfig(BaseModel, frozen=True, extra="forbid"):
    """Attack one model that exists, decide, and keep what was found. Whoever trained it."""

    name: str = Field(pattern=ANY_NAME, description="of the registered model, or of the experiment where it is none")
    model: str = Field(description="models:/NAME/3, models:/NAME@champion, an ONNX file, or 'package.module:function'")
    dataset: str = Field(description="a name from the table, 'package.module:function', a CSV or an IDX folder")
    contract: DataContract = DataContract()
    evaluation: EvaluationConfig
    policy: Policy = Policy()

    @model_validator(mode="after")
    def _is_of_that_name(self) -> Self:
        found = REGISTERED.fullmatch(self.model)
        if found and found["name"] != self.name:
            raise ValueError(f"{self.model} is recorded under its own name. Write name: {found['name']}.")
        return self


class PipelineConfig(BaseModel, frozen=True, extra="forbid"):
    """Validate, train, attack, decide; while the verdict is fail, harden and attack again; promote what passes."""

    name: str = Field(pattern=NAME, description="of the registered model and of the experiment")
    dataset: str = Field(description="a name from the table, 'package.module:function', a CSV or an IDX folder")
    contract: DataContract = DataContract()
    training: TrainingConfig
    hardening: TrainingConfig
    evaluation: EvaluationConfig
    policy: Policy = Policy()

    def as_evaluation(self, version: int) -> EvaluateConfig:
        """What `redoubt evaluate` would have to be asked for to measure a registered version in the same way."""
        return EvaluateConfig(
            name=self.name,
            model=f"models:/{self.name}/{version}",
            dataset=self.dataset,
            contract=self.contract,
            evaluation=self.evaluation,
            policy=self.policy,
        )


class Plan(PipelineConfig, frozen=True, extra="forbid"):
    """How a registered model is measured and hardened when nobody asks. Others may have given it its name."""

    name: str = Field(pattern=ANY_NAME, description="of the registered model")


def parse(values: dict[str, Any]) -> PipelineConfig:
    """The config that the values make. Raises WrongInput, one line for each mistake, with the nearest known key."""
    return _parsed(PipelineConfig, values)


def parse_evaluation(values: dict[str, Any]) -> EvaluateConfig:
    """The same for an evaluation of a model that exists."""
    return _parsed(EvaluateConfig, values)


def parse_plan(values: dict[str, Any]) -> Plan:
    """The same for the plan of a registered model."""
    return _parsed(Plan, values)


def _parsed(kind: type[Config], values: dict[str, Any]) -> Config:
    for where in credentials_in(values):
        raise WrongInput(
            f"{where} holds a credential. A config is kept in every run and shown on pages: write it without, and put "
            "the credential into the environment or a Prefect block."
        )
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        raise WrongInput("\n".join(_sentence(row, kind) for row in error.errors())) from error
    mistaken = [
        f"{where}: {str(truth).lower()} is no number; YAML reads {'yes and on' if truth else 'no and off'} so. "
        f"Write {int(truth)} for the number."
        for where, truth in _taken_for_numbers(values, config.model_dump())
    ]
    if mistaken:
        raise WrongInput("\n".join(mistaken))
    return config


def _taken_for_numbers(given: object, taken: object, where: str = "") -> Iterator[tuple[str, bool]]:
    """Each true or false that was given where a number is meant, which pydantic takes for 1 or 0, and its place."""
    if isinstance(given, bool) and not isinstance(taken, bool):
        yield where, given
    elif isinstance(given, Mapping) and isinstance(taken, Mapping):
        for key in (key for key in given if key in taken):
            yield from _taken_for_numbers(given[key], taken[key], f"{where}.{key}".lstrip("."))
    elif isinstance(given, list | tuple) and isinstance(taken, list | tuple):
        for number, (one, other) in enumerate(zip(given, taken, strict=False)):
            yield from _taken_for_numbers(one, other, f"{where}.{number}")


def threat_of(norm: str, eps: str | None) -> ThreatModel:
    """The threat model of a norm and a radius, e.g. linf and 8/255; unbounded has none. Raises WrongInput."""
    try:
        return ThreatModel.model_validate({"norm": norm} | ({} if eps is None else {"eps": eps}))
    except ValidationError as error:
        raise WrongInput("\n".join(_sentence(row, ThreatModel) for row in error.errors())) from error


def _sentence(row: Any, kind: type[BaseModel]) -> str:
    path = [part for part in row["loc"] if not (isinstance(part, str) and "[" in part)]
    where = ".".join(str(part) for part in path)
    if row["type"] == "extra_forbidden":
        known = _fields(kind, path[:-1])
        return f"unknown key {where!r}.{did_you_mean(str(path[-1]), known)} Known here: {', '.join(known)}."
    if row["type"] == "missing":
        return f"{where!r} is missing."
    message = row["msg"].removeprefix("Value error, ")
    given = "" if row["type"] == "value_error" else f" (written: {row['input']!r})"
    return f"{where}: {message}{given}" if where else f"{message}{given}"


def _fields(kind: type[BaseModel], path: list[Any]) -> list[str]:
    """The keys that the config knows below a path."""
    schema = kind.model_json_schema()
    place = schema
    for part in path:
        place = place.get("items", {}) if isinstance(part, int) else place.get("properties", {}).get(part, {})
        place = next((p for p in (place, *place.get("anyOf", ()), *place.get("allOf", ())) if "$ref" in p), place)
        if "$ref" in place:
            place = schema["$defs"][place["$ref"].rpartition("/")[2]]
    return list(place.get("properties", {}))
