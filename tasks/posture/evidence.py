"""Evidence: the digests that tie a verdict to data, weights, code, suite and results, and what does not match them."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, Field, JsonValue, ValidationError, model_validator

from tasks.errors import EvidenceBroken, WrongInput

FILE = "evidence.json"  # its path in the run of the evaluation


def _inside(path: str) -> str:
    if "\\" in path or not path.isprintable() or {"", ".", ".."} & set(path.split("/")):
        raise ValueError(f"{path!r} is no path inside a run. Write e.g. outcomes/linf_0.1.json.")
    return path


def _utc(moment: str) -> str:
    if datetime.fromisoformat(moment).utcoffset() is None:
        raise ValueError(f"{moment!r} names no time zone. Write e.g. 2026-01-31T12:00:00+00:00.")
    return moment


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{16,64}$")]  # SHA-256, or its first 16 hex digits
InRun = Annotated[str, AfterValidator(_inside)]


class DataFacts(BaseModel, frozen=True, extra="forbid"):
    """What was measured on."""

    name: str
    digest: Digest
    split: str
    rows: Sha256 = Field(description="rows_digest() of the measured samples' places in the split")


class WeightsFacts(BaseModel, frozen=True, extra="forbid"):
    """What was measured."""

    model: str = Field(description="the network, as the config names it")
    kind: Literal["weights", "graph", "onnx"]
    uri: str = Field(description="where the file is kept, e.g. runs:/<run>/weights/model.safetensors")
    digest: Digest


class CodeFacts(BaseModel, frozen=True, extra="forbid"):
    """What measured it."""

    digest: Digest = Field(description="of Redoubt's own code")
    commit: str = Field("", description="of git; empty outside a checkout")
    version: str = Field(description="of Redoubt")


class SuiteFacts(BaseModel, frozen=True, extra="forbid"):
    """What it was attacked with."""

    name: str
    digest: Digest
    attacks: tuple[dict[str, JsonValue], ...] = Field(min_length=1, description="each with all of its parameters")


class VerdictFacts(BaseModel, frozen=True, extra="forbid"):
    """What was decided."""

    outcome: Literal["pass", "fail", "cannot tell"]
    reasons: tuple[str, ...] = Field(min_length=1)


class ChampionFacts(BaseModel, frozen=True, extra="forbid"):
    """What a version was compared with."""

    version: int = Field(ge=1)
    evidence: str = Field("", pattern="^([0-9a-f]{64})?$", description="SHA-256 of its newest evidence; empty for none")
    weights_digest: Digest


class FindingFacts(BaseModel, frozen=True, extra="forbid"):
    """How a finding stood after the evaluation."""

    state: str
    digest: Sha256 = Field(description="of what only an evaluation may change")


LATER = ("written_at", "champion", "recalled", "ledger", "corpora")  # fields that older evidence does not have


class Evidence(BaseModel, frozen=True, extra="forbid"):
    """Everything that one verdict rests on, by digest. Its file's SHA-256 stands on the version as a tag."""

    format: Literal["redoubt-evidence/1"] = "redoubt-evidence/1"
    name: str = Field(description="of the registered model")
    version: int | None = Field(None, ge=1, description="empty for what was evaluated before it was registered")
    stage: str
    run_id: str = Field(description="of the evaluation in MLflow")
    made_at: Annotated[str, AfterValidator(_utc)] = Field(description="ISO 8601 with its time zone")
    data: DataFacts
    weights: WeightsFacts
    model_code: str = Field("", pattern="^([0-9a-f]{16,64})?$", description="digest of the network's own code, if any")
    code: CodeFacts
    environment: dict[str, str] = Field(description="versions of packages and of python, and the device")
    config: dict[str, JsonValue] = Field(description="evaluation and policy, whole")
    suite: SuiteFacts
    threats: dict[str, Digest] = Field(min_length=1, description="name of the threat model: its digest")
    seed: int
    seeds: int = Field(1, ge=1)
    verdict: VerdictFacts
    outcomes: dict[str, Sha256] = Field(description="name of the threat model: fooled_digest() of its samples")
    artifacts: dict[InRun, Sha256] = Field(min_length=1, description="path in the run: SHA-256 of the file's bytes")
    corpus: dict[str, Digest] = Field(
        default_factory=dict, description="name of the threat model: digest of the stored examples that it began at"
    )
    previous: str = Field("", pattern="^([0-9a-f]{64})?$", description="SHA-256 of the version's evidence before")
    written_at: str = Field("", description="ISO 8601; made_at is when the oldest number in it was measured")
    champion: ChampionFacts | None = Field(None, description="what it was compared with; null where with none")
    recalled: tuple[str, ...] = Field((), description="threat models whose whole result came from the store of cells")
    ledger: dict[str, FindingFacts] = Field(default_factory=dict, description="each finding of the model afterwards")
    corpora: dict[str, Sha256] = Field(
        default_factory=dict, description="of the registered model's tags on its stored examples, afterwards"
    )

    @property
    def complete(self) -> bool:
        """Whether it has the fields that older evidence lacks: of such a one a champion of null says that none was."""
        return set(LATER) <= self.model_fields_set

    @property
    def moment(self) -> datetime:
        """When it was written; of older evidence, when it was measured."""
        return datetime.fromisoformat(self.written_at or self.made_at)

    @model_validator(mode="after")
    def _has_outcomes_for_each_threat(self) -> Self:
        if self.outcomes.keys() != self.threats.keys():
            raise ValueError(f"outcomes are of {sorted(self.outcomes)}, threats are {sorted(self.threats)}")
        return self


def to_bytes(evidence: Evidence) -> bytes:
    """The evidence as its file: JSON with sorted keys, without blanks, in UTF-8, with a newline at the end.

    Raises WrongInput for what JSON cannot hold, e.g. a NaN in the config.
    """
    absent = {name for name in LATER if name not in evidence.model_fields_set}
    values = evidence.model_dump(mode="python", exclude=absent)
    try:
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()
    except ValueError as error:
        raise WrongInput(
            f"the evidence cannot be written as JSON: {error}. Keep plain, finite values in it."
        ) from error


def digest(raw: bytes) -> str:
    """SHA-256 of the bytes: 64 hex digits."""
    return hashlib.sha256(raw).hexdigest()


def fooled_digest(fooled: Sequence[bool]) -> str:
    """SHA-256 of the number of samples and of one bit for each, 1 where it was fooled or wrong from the start."""
    return digest(f"{len(fooled)}:".encode() + np.packbits(np.asarray(fooled, dtype=bool)).tobytes())


def rows_digest(rows: Sequence[int]) -> str:
    """SHA-256 of the measured samples' places in their split, each as eight bytes, the least significant first."""
    return digest(np.asarray(rows, dtype="<i8").tobytes())


def parse(raw: bytes) -> Evidence:
    """The evidence that a file holds. Raises EvidenceBroken unless it is exactly what to_bytes() writes."""
    try:
        evidence = Evidence.model_validate_json(raw)
        canonical = to_bytes(evidence)
    except (ValidationError, WrongInput) as error:
        raise EvidenceBroken(f"this is no evidence file: {first_wrong(error)}.") from error
    if canonical != raw:
        raise EvidenceBroken(
            "this evidence file is not in canonical form: keys were added twice or moved, or blanks or numbers were "
            "written in another way. Whoever wrote it did not use to_bytes()."
        )
    return evidence


def chain(head: str, fetch: Callable[[str], Iterable[bytes]]) -> Iterator[Evidence]:
    """The evidence that head names, then the one before it, and so on: the oldest comes last.

    fetch gives every file that is kept under a digest, none if there is none. A digest cannot name what is newer
    than itself, so the walk ends. Raises EvidenceBroken where a link is missing, was changed, or is of another
    version; what was yielded until then is whole. That head is the newest cannot be seen from the chain.
    """
    wanted, newer = head, None
    while newer is None or wanted:
        kept = [(digest(raw), raw) for raw in fetch(wanted)]
        raw = next((raw for found, raw in kept if found == wanted), None)
        by = f", which the evidence of {newer.made_at} names as the one before it" if newer else ""
        if raw is None and kept:
            raise EvidenceBroken(f"what is kept as evidence {wanted!r}{by} hashes to {kept[0][0]}: it was changed.")
        if raw is None:
            raise EvidenceBroken(f"evidence {wanted!r}{by} is missing: the chain has a gap.")
        evidence = parse(raw)
        if newer is not None:
            _same_version(newer, evidence, wanted)
        yield evidence
        wanted, newer = evidence.previous, evidence


def _same_version(newer: Evidence, older: Evidence, found: str) -> None:
    numbers = {evidence.version for evidence in (newer, older) if evidence.version is not None}
    if older.name != newer.name or older.weights.digest != newer.weights.digest or len(numbers) > 1:
        raise EvidenceBroken(
            f"evidence {found} is of {_version(older)}, but the evidence of {newer.made_at} that names it as the one "
            f"before is of {_version(newer)}. A chain holds the evidence of one version only."
        )


def _version(evidence: Evidence) -> str:
    number = "without a number" if evidence.version is None else str(evidence.version)
    return f"{evidence.name!r} version {number} with weights {evidence.weights.digest}"


def first_wrong(error: ValidationError | WrongInput) -> str:
    """The first thing that is wrong, and where, without the file's content."""
    if isinstance(error, WrongInput):
        return str(error).rstrip(".")
    row = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, row["loc"]))
    said = row["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{where}: {said}" if where else said
