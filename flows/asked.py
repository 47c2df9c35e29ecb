"""What is to be evaluated, as a config: from words, from a recipe, or like the last time."""

import re
from pathlib import Path
from typing import Any, get_args

from flows.config import EvaluateConfig, parse_evaluation
from flows.recipes import change, configured
from tasks.attacks.threat import Norm
from tasks.data import Data, describe, load
from tasks.errors import WrongInput
from tasks.fetch import check_named, version_named
from tasks.lookup import REGISTERED, did_you_mean
from tasks.parts import named
from tasks.posture import Record
from tasks.posture.changes import measured_at
from tasks.recall import asked_of, expected_facts, expected_key, newest_record
from tasks.track import CROWNED, Version, aliases, registered

WEEKLY = "deep"  # the suite of the week's end


def asked(
    model: str,
    *,
    dataset: str | None,
    like: str | None,
    name: str | None,
    norm: str | None,
    eps: str | None,
    suite: str | None,
    samples: int | None,
    seed: int | None,
    floor: float | None,
    changes: tuple[str, ...],
) -> EvaluateConfig:
    """The config of an evaluation of the model. Raises WrongInput that says what is missing."""
    if norm is not None and norm not in get_args(Norm):
        known = get_args(Norm)
        raise WrongInput(f"--norm {norm} is unknown.{did_you_mean(norm, known)} Known: {', '.join(known)}.")
    if eps is None and norm not in (None, "unbounded"):
        raise WrongInput(f"--norm {norm} needs a radius. Write --eps as well, e.g. --norm {norm} --eps 0.5.")
    with named(model, dataset, changes):
        check_named(model)
        values = _begin(model, like, dataset=dataset, told=eps is not None or norm == "unbounded")
    values |= {"model": model, "name": name or _name_of(model)}
    if dataset:
        values["dataset"] = dataset
    evaluation: dict[str, Any] = values["evaluation"]
    if eps is not None or norm == "unbounded":
        evaluation["threats"] = [{"norm": norm or "linf"} | ({} if eps is None else {"eps": eps})]  # bounds may follow
    evaluation |= {k: v for k, v in {"suite": suite, "samples": samples, "seed": seed}.items() if v is not None}
    if floor is not None:
        values["policy"] = values.get("policy", {}) | {"floor": floor, "floors": {}}
    for text in changes:
        change(values, text)
    return parse_evaluation(values)


def _begin(model: str, like: str | None, *, dataset: str | None, told: bool) -> dict[str, Any]:
    """What the words of the command are laid over; told: whether they say against what."""
    if like and REGISTERED.fullmatch(like):
        return asked_of(run_to_follow(version_named(like), as_champion=like.endswith("@champion")))
    if like:
        whole = configured(like, ()).model_dump(mode="json")
        return {key: whole[key] for key in ("dataset", "contract", "evaluation", "policy")}
    last = _last_time(model)
    if last is not None and (dataset is None or dataset == last["dataset"]):
        return last
    if dataset is None or not told:
        raise WrongInput(
            f"{model} was not evaluated before, so nobody knows on what data and against what. Write --dataset D "
            "--eps 0.03, or --like RECIPE to take both from a recipe or a YAML file."
        )
    return {"dataset": dataset, "evaluation": {"threats": []}, "policy": {}}


def _last_time(model: str) -> dict[str, Any] | None:
    """How this version was last evaluated, or else the newest measured version of the same name; None if never."""
    record = _newest(version_named(model)) if REGISTERED.fullmatch(model) else None
    return asked_of(record.run_id) if record else None


def _newest(version: Version) -> Record | None:
    """The newest record of a version, or else of its model; None where nothing was measured."""
    return max(_records(version), key=measured_at, default=None)


def _records(version: Version) -> list[Record]:
    """Those of a version, or else of its model."""
    return version.records() or [record for other in registered(version.name) for record in other.records()]


def usual(version: Version) -> Record | None:
    """The newest record of a version, or else of its model, that the weekly suite has not made; None without any.

    Or else one week's end would make the deep suite that of every night.
    """
    records = _records(version)
    rest = [record for record in records if record.suite.partition("+")[0] != WEEKLY] or records
    return max(rest, key=measured_at, default=None)


def _name_of(model: str) -> str:
    """What the experiment of a model is called: its registered name, or the file's or the function's."""
    found = REGISTERED.fullmatch(model)
    bare = found["name"] if found else Path(model).stem if Path(model).is_file() else model.rpartition(":")[2]
    return bare if found else re.sub(r"[^A-Za-z0-9._-]+", "-", bare).strip("-.") or "model"


def which_versions(words: str) -> str | list[int]:
    """What --versions means: live, all, or numbers with commas. Raises WrongInput."""
    if words in ("live", "all"):
        return words
    try:
        return [int(word) for word in words.split(",")]
    except ValueError:
        raise WrongInput(f"--versions {words}: write live, all, or numbers with commas, e.g. 1,2.") from None


def chosen(name: str, versions: str | list[int]) -> tuple[Version, ...]:
    """The versions that are meant, oldest first. Raises WrongInput where there are none."""
    known = registered(name)
    if not known:
        raise WrongInput(f"no model is registered as {name!r}. `redoubt run` registers one, so does MLflow.")
    if versions == "all":
        return known
    if isinstance(versions, str) and versions != "live":
        raise WrongInput(f"versions={versions!r}: write live, all, or numbers.")
    wanted = set(aliases(name).values()) if isinstance(versions, str) else set(versions)
    if not wanted:
        raise WrongInput(f"no version of {name!r} bears an alias. Write --versions all, or name some: --versions 1,2.")
    missing = wanted - {version.number for version in known}
    if missing:
        raise WrongInput(f"{name!r} has no version {', '.join(map(str, sorted(missing)))}.")
    return tuple(version for version in known if version.number in wanted)


def run_to_follow(version: Version, *, as_champion: bool) -> str:
    """The run in which the version was measured last, or else became champion. Raises WrongInput for none."""
    crowned = version.tags.get(CROWNED) if as_champion else None
    return crowned or newest_record(version).run_id


def like_before(version: Version, *, suite: str | None = None, run_id: str = "") -> EvaluateConfig:
    """How the version was last evaluated, or else its model's newest measured version. Raises WrongInput.

    suite: another one. run_id: of an evaluation to go by instead.
    """
    newest, where = _newest(version), f"models:/{version.name}/{version.number}"
    if not run_id and newest is None:
        raise WrongInput(
            f"no version of {version.name!r} was evaluated, so nobody knows on what data and against what. Once, "
            f"write: redoubt evaluate {where} --dataset D --eps 0.03"
        )
    values = asked_of(run_id or newest.run_id) | {"model": where}  # type: ignore[union-attr]
    if suite:
        values["evaluation"] = values["evaluation"] | {"suite": suite}
    return parse_evaluation(values)


def standing(version: Version, config: EvaluateConfig, data: Data) -> Record | None:
    """The newest record of the version on this data, under this suite and policy; None where there is none.

    Unlike already() it takes a warm start for another, whatever examples it began at.
    """
    wanted = expected_facts(data, config.evaluation)
    if config.evaluation.warm:
        wanted.pop("warm")
    found = [
        record
        for record in version.records()
        if record.policy == config.policy.digest and all(getattr(record, fact) == wanted[fact] for fact in wanted)
    ]
    return max(found, key=measured_at, default=None)


def already(version: Version, config: EvaluateConfig) -> Record | None:
    """The version's record where it was measured on this data, under this suite and policy; None if not."""
    wanted = expected_key(describe(config.dataset, load(config.dataset)), config.evaluation)
    found = (record for record in version.records() if record.key == wanted)
    return next((record for record in found if record.policy == config.policy.digest), None)
