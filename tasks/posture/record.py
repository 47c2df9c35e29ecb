"""Record: one measurement of one registered version, small enough to stand on the version as a tag."""

import hashlib
import json
from collections.abc import Mapping

from pydantic import BaseModel, Field

from tasks.statistics import Share

FACTS = {  # what must be equal before two measurements are compared, and how it is called in a sentence
    "split": "split",
    "data_digest": "data",
    "samples": "number of samples",
    "seed": "seed",
    "seeds": "number of seeds",
    "threat_digests": "list of threat models",
    "suite_digest": "suite",
    "warm": "start (adversarial examples that the attacks began at)",
}


def key_of(facts: Mapping[str, object]) -> str:
    """Twelve hex digits of the facts that FACTS names."""
    return hashlib.sha256(json.dumps([facts[fact] for fact in FACTS]).encode()).hexdigest()[:12]


class ThreatRecord(BaseModel, frozen=True, extra="forbid"):
    """The number under one threat model, and whether it may be believed."""

    name: str = Field(description="e.g. linf_0.15")
    label: str = Field(description="for people, e.g. L-inf 0.15")
    digest: str = Field(description="of the threat model")
    robust: Share
    sound: bool = Field(description="checked, no alarm stands, nothing broke")
    alarms: tuple[str, ...] = Field((), description="names of the signs that stand unanswered")
    floor: float = Field(ge=0, le=1, description="that the policy asked for")
    replay: Share | None = Field(None, description="what withstood the stored examples of earlier versions")
    forward_samples: int = Field(ge=0, description="queries")
    backward_samples: int = Field(ge=0, description="gradients")
    seconds: float = Field(ge=0)


class Record(BaseModel, frozen=True, extra="forbid"):
    """One measurement of one version, with every fact that it takes to know what it may be compared with."""

    name: str = Field(description="of the registered model")
    version: int = Field(ge=1)
    stage: str
    run_id: str = Field(description="of the evaluation in MLflow")
    measured_at: str = Field(description="ISO 8601, UTC")
    verdict: str = Field(description="pass, fail or cannot tell")
    reason: str = Field(description="the first one of the verdict")
    data: str = Field(description="name of the dataset")
    data_digest: str
    split: str
    samples: int = Field(ge=1)
    seed: int
    seeds: int
    suite: str = Field(description="name of the suite")
    suite_digest: str
    warm: str = Field("", description="digest of the examples that the attacks began at; empty for a cold start")
    weights_digest: str
    code: str = Field(description="digest of Redoubt's own code")
    environment: dict[str, str] = Field(description="versions of packages, and the device")
    confidence: float
    clean: Share
    threats: tuple[ThreatRecord, ...] = Field(min_length=1)
    policy: str = Field("", description="digest of the policy that the verdict was taken under")
    evidence: str = Field("", description="SHA-256 of the evidence file")

    @property
    def threat_digests(self) -> tuple[str, ...]:
        """Of the threat models, in the order in which they were measured."""
        return tuple(threat.digest for threat in self.threats)

    @property
    def key(self) -> str:
        """Twelve hex digits that two measurements share if and only if they may be compared."""
        return key_of({fact: getattr(self, fact) for fact in FACTS})

    @property
    def sound(self) -> bool:
        """Whether every number may be believed."""
        return all(threat.sound for threat in self.threats)

    def differs_from(self, other: "Record") -> str | None:
        """The first fact that keeps the two from being compared, in words; None if they may be."""
        return next((said for fact, said in FACTS.items() if getattr(self, fact) != getattr(other, fact)), None)
