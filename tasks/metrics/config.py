"""EvaluationConfig: which attacks run, under which threat models, on how many samples."""

from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator, Field, field_validator
from torch import Tensor

from tasks.attacks import AttackConfig, Suite, ThreatModel, as_suite
from tasks.metrics.code import own_code
from tasks.metrics.foreign import ATTACK_SECONDS
from tasks.metrics.outcomes import Precision
from tasks.statistics import as_share

ClassNumber = Annotated[int, Field(ge=0)]


class EvaluationConfig(BaseModel, frozen=True, extra="forbid"):
    """Which attacks run, under which threat models, on how many samples."""

    threats: tuple[ThreatModel, ...] = Field(
        json_schema_extra={"minItems": 1}, description="each is measured and judged by itself"
    )
    suite: str = Field("standard", description="a named list of attacks: quick, standard or deep")
    attacks: tuple[AttackConfig, ...] = Field((), description="attacks of your own, run after the suite's")
    samples: int | None = Field(None, ge=1, description="how many samples of the split; all if empty")
    confidence: Annotated[float, BeforeValidator(as_share)] = Field(0.95, gt=0.5, lt=1, description="of every interval")
    seed: int = Field(0, ge=0)
    seeds: int = Field(1, ge=1, le=20, description="attack seeds; the headline is the worst case over all of them")
    critical_pairs: tuple[tuple[ClassNumber, ClassNumber], ...] = Field(
        (), description="[source class, target class], e.g. [[3, 8]]: no sample may be made to look like the target"
    )
    warm: bool = Field(
        False,
        description="begin at the stored examples of earlier versions: a head start for the attacks, so such numbers "
        "are compared only with each other",
    )
    precision: Precision = Field("auto", description="of the search; auto: bf16 where that is faster")
    attack_seconds: float = Field(
        ATTACK_SECONDS,
        gt=0,
        allow_inf_nan=False,
        description="of one of your own attacks on one block of samples; beyond it is stopped, and the number is void",
    )

    @field_validator("threats")
    @classmethod
    def _each_once(cls, threats: tuple[ThreatModel, ...]) -> tuple[ThreatModel, ...]:
        if not threats:  # min_length would complain of a wrong entry once more
            raise ValueError("nothing to measure. Write one threat model at least, e.g. [{norm: linf, eps: 8/255}].")
        names = [threat.name for threat in threats]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"{twice} stands there twice, and its metrics would bear one name. Leave one out.")
        return threats

    @field_validator("attacks", mode="before")
    @classmethod
    def _by_name_alone(cls, attacks: Any) -> Any:
        if isinstance(attacks, str):
            raise ValueError(f"{attacks!r} is one attack. Write a list: [{attacks}].")
        if not isinstance(attacks, list | tuple):
            return attacks
        return [{"name": attack} if isinstance(attack, str) else attack for attack in attacks]

    @field_validator("critical_pairs", mode="before")
    @classmethod
    def _are_pairs(cls, pairs: Any) -> Any:
        if isinstance(pairs, list | tuple) and len(pairs) == 2 and all(isinstance(number, int) for number in pairs):
            raise ValueError(f"{list(pairs)} is one pair. Write a list of pairs: [{list(pairs)}].")
        return pairs

    @field_validator("critical_pairs")
    @classmethod
    def _of_two_classes(cls, pairs: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        same = next((pair for pair in pairs if pair[0] == pair[1]), None)
        if same:
            raise ValueError(f"the critical pair {list(same)} is one class. Write [source, target], e.g. [3, 8].")
        return tuple(dict.fromkeys(pairs))

    def resolved_suite(self) -> Suite:
        """The suite with the user's own attacks behind it. Raises UnknownPart."""
        suite = as_suite(self.suite)
        if not self.attacks:
            return suite
        name = "+".join([suite.name, *(attack.name for attack in self.attacks)])
        return as_suite(suite.model_copy(update={"name": name, "attacks": (*suite.attacks, *self.attacks)}))

    def facts(self) -> dict[str, Any]:
        """What the result under any one of the threat models follows from, besides threat, model and samples."""
        suite, elsewhere = self.resolved_suite(), {"threats", "suite", "attacks", "samples", "attack_seconds"}
        return {
            "suite": [suite.name, suite.digest],
            "own attacks": own_code(suite),
            "config": self.model_dump(mode="json", exclude=elsewhere),
        }


def choose_rows(n: int, samples: int | None, seed: int) -> Tensor:
    """Which rows of a split of n are measured: all, or a fixed random choice, in ascending order: [samples]."""
    if samples is None or samples >= n:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:samples].sort().values
