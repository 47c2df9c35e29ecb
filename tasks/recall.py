"""Look up what is known of a registered model. Loads neither torch nor Prefect: the answer is there in seconds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tasks.errors import EvidenceBroken, WrongInput
from tasks.ledger import FINDING
from tasks.lookup import did_you_mean
from tasks.parts import vouched
from tasks.plan import WAIVER
from tasks.posture import Record, key_of
from tasks.posture.appendix import APPENDIX, parse_appendix
from tasks.posture.changes import measured_at
from tasks.posture.compare import Measured
from tasks.posture.evidence import digest
from tasks.posture.finding import Finding
from tasks.posture.history import History
from tasks.results import ASKED, PAGE, VERDICT, load_adversarial, load_json, load_outcomes
from tasks.track import (
    Version,
    artifacts,
    children,
    load_bytes,
    model_facts,
    names,
    parent_of,
    registered,
    run_tags,
    visitor,
)

if TYPE_CHECKING:
    from tasks.data import Data
    from tasks.metrics import EvaluationConfig


@dataclass(frozen=True)
class Known:
    """A registered model with everything that its tags say."""

    name: str
    aliases: Mapping[str, int]
    tags: Mapping[str, str]
    versions: tuple[Version, ...]

    @property
    def records(self) -> list[Record]:
        """Every measurement that stands on a version."""
        return [record for version in self.versions for record in version.records()]

    @property
    def history(self) -> History:
        """What was measured, version by version."""
        return History.of(self.name, self.records, self.aliases, [version.number for version in self.versions])

    @property
    def findings(self) -> list[Finding]:
        """The ledger, as it was last written. Raises EvidenceBroken for a tag that was changed."""
        return findings_in(self.name, self.tags)

    def version(self, number: int) -> Version:
        """One of its versions. Raises WrongInput."""
        found = next((version for version in self.versions if version.number == number), None)
        if found is None:
            known = ", ".join(str(version.number) for version in self.versions)
            raise WrongInput(f"{self.name!r} has no version {number}. Registered: {known}.")
        return found

    def numbered(self, word: str) -> int:
        """The version that a word means: 3, v3, champion or @champion. Raises WrongInput."""
        bare = word.removeprefix("@")
        if bare in self.aliases:
            return self.aliases[bare]
        number = re.fullmatch(r"v?(\d+)", bare)
        if number is None:
            held = ", ".join(self.aliases) or "none"
            raise WrongInput(
                f"{word!r} is no version of {self.name!r}. Write a number, or an alias; borne are: {held}."
            )
        return self.version(int(number[1])).number


def findings_in(name: str, tags: Mapping[str, str]) -> list[Finding]:
    """The ledger that the tags of a registered model hold. Raises EvidenceBroken for a tag that was changed."""
    kept = {key: value for key, value in tags.items() if key.startswith(FINDING)}
    return sorted((_finding(name, *one) for one in kept.items()), key=lambda f: (f.found_at, f.id))


def _finding(name: str, key: str, value: str) -> Finding:
    try:
        return Finding.model_validate_json(value)
    except ValidationError as error:
        raise EvidenceBroken(
            f"the tag {key} of {name!r} is no finding: it was changed. Take its text from an older copy, or delete it."
        ) from error


def known_of(name: str) -> Known:
    """What the registry knows of a model. Raises WrongInput, with the nearest name, for one that is not there."""
    versions = registered(name)
    if versions:
        return Known(name, *model_facts(name), versions)
    there = names()
    if name in there:
        raise WrongInput(f"{name!r} has no version. `redoubt run` registers one, so does MLflow.")
    said = f"Registered: {', '.join(there)}." if there else "Nothing is registered here: `redoubt run digits` does."
    hidden = f" What {visitor()} may not read does not show: whoever may MANAGE it grants READ." if visitor() else ""
    raise WrongInput(f"no model is registered as {name!r}.{did_you_mean(name, there)} {said}{hidden}")


def newest_record(version: Version) -> Record:
    """The newest measurement of a version. Raises WrongInput where there is none."""
    record = max(version.records(), key=measured_at, default=None)
    if record is None:
        where = f"models:/{version.name}/{version.number}"
        raise WrongInput(f"{where} was never evaluated. Write: redoubt evaluate {where} --dataset D --eps 0.03")
    return record


def newest_measured(known: Known, number: int | None = None) -> Record:
    """The newest measurement of a version, or of any where none is named. Raises WrongInput where there is none."""
    if number is not None:
        return newest_record(known.version(number))
    if not known.records:
        return newest_record(known.versions[-1])
    return max(known.records, key=lambda record: (measured_at(record), record.version or 0))


def patience_of(known: Known) -> float | None:
    """The days after which the newest policy calls an open finding overdue; None where nothing was measured."""
    if not known.records:
        return None
    policy = load_json(newest_measured(known).run_id, VERDICT)["policy"]
    return float(policy["max_finding_days"])


def expected_key(data: "Data", config: "EvaluationConfig") -> str:
    """The key of the record that measuring a version by this config on the data's test split would make.

    Empty for a warm start, whose examples grow with every evaluation.
    """
    return "" if config.warm else key_of(expected_facts(data, config))


def expected_facts(data: "Data", config: "EvaluationConfig") -> dict[str, object]:
    """The facts that would be in that key, as if it began cold."""
    from tasks.metrics import choose_rows

    return {
        "split": "test",
        "data_digest": data.digest,
        "samples": len(choose_rows(data.sizes["test"], config.samples, config.seed)),
        "seed": config.seed,
        "seeds": config.seeds,
        "threat_digests": tuple(threat.digest for threat in config.threats),
        "suite_digest": config.resolved_suite().digest,
        "warm": "",
    }


def to_compare(known: Known, first: int, second: int) -> tuple[Measured, Measured]:
    """Two versions as they were measured alike most lately; else as each was measured last, to be refused."""
    if first == second:
        raise WrongInput(f"both are version {first} of {known.name!r}: there is nothing to compare. Name two versions.")
    a, b = known.version(first), known.version(second)
    pairs = [(r, s) for r in a.records() for s in b.records() if r.key == s.key]
    record = max(pairs, key=lambda pair: min(map(measured_at, pair)), default=None)
    mine, theirs = record or (newest_record(a), newest_record(b))
    return _measured(mine), _measured(theirs)


def _measured(record: Record) -> Measured:
    return Measured(record, {threat.name: load_outcomes(record.run_id, threat.name) for threat in record.threats})


def adversarial_of(record: Record) -> dict[str, Any]:
    """What fooled a version, under each threat model."""
    return {threat.name: load_adversarial(record.run_id, threat.name) for threat in record.threats}


def decided(run: str) -> tuple[str, dict[str, Any]]:
    """The stage's run and what was decided in it: of a run, its last stage, models:/NAME/3, or NAME@champion.

    Raises WrongInput for a run that holds no verdict.
    """
    found = re.fullmatch(r"(?:models:/)?([^/@]+)(?:/|@)([^/@]+)", run)
    if found:
        known = known_of(found[1])
        run = newest_record(known.version(known.numbered(found[2]))).run_id
    for run_id in (run, *reversed(children(run))):
        if VERDICT in artifacts(run_id):
            return run_id, load_json(run_id, VERDICT)
    raise WrongInput(f"run {run!r} holds no verdict. Name the run of an evaluation, or models:/NAME/3.")


def compared(kept: Mapping[str, Any]) -> str:
    """With which champion a verdict compared the version, in words; empty where it was kept before that was written."""
    if "champion" not in kept:
        return ""
    champion = kept["champion"]
    if champion is None:
        return "Compared with no champion: there was none then, or none that is older."
    return f"Compared with version {champion['version']}, the champion then (weights {champion['weights_digest'][:8]})."


def compared_with(run_id: str) -> int | None:
    """The champion that the version was compared with in this run; None for none."""
    champion = load_json(run_id, VERDICT).get("champion")
    return int(champion["version"]) if champion else None


def record_of(run_id: str) -> Record | None:
    """The record that a version bears for this run; None where a newer one took its place, or of no version."""
    tags = run_tags(run_id)
    if "redoubt.version" not in tags:
        return None
    records = known_of(tags["redoubt.model"]).version(int(tags["redoubt.version"])).records()
    return next((record for record in records if record.run_id == run_id), None)


def page_of(run_id: str) -> tuple[str, str] | None:
    """The run and the path of the HTML report on an evaluation; None where none was kept."""
    for run in (run_id, parent_of(run_id)):
        if run and PAGE in artifacts(run):
            return run, PAGE
    return None


def told_by(run_id: str, path: str) -> bytes:
    """A file of the run that tells people of its evidence. Raises EvidenceBroken where it is not what was written."""
    raw = load_bytes(f"runs:/{run_id}/{path}")
    if APPENDIX not in artifacts(run_id):
        raise EvidenceBroken(f"{path} of run {run_id} has no {APPENDIX} beside it: who wrote it, nobody can say.")
    if parse_appendix(load_bytes(f"runs:/{run_id}/{APPENDIX}")).artifacts.get(path) != digest(raw):
        raise EvidenceBroken(f"{path} of run {run_id} was changed after it was written: `redoubt verify` says more.")
    return raw


def asked_of(run_id: str) -> dict[str, Any]:
    """The config of an evaluation, without what was waived for that once.

    Raises PartRefused where it names a function that nobody here vouches for.
    """
    values: dict[str, Any] = load_json(run_id, ASKED)
    policy = {key: value for key, value in values["policy"].items() if key != WAIVER}
    return vouched(values | {"policy": policy}, f"the config of run {run_id}")
