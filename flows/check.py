"""A pull request's short tier: is one model above a floor? As few samples as it takes, and an exit code."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.errors import WrongInput

if TYPE_CHECKING:
    from tasks.attacks import ThreatModel
    from tasks.metrics import Binarisation, EarlyDecision
    from tasks.verdicts import Outcome


@dataclass(frozen=True)
class Checked:
    """What is known of the model, and what follows."""

    asked: dict[str, Any]  # model, dataset, threat, suite, seed
    early: "EarlyDecision"
    planted: "Binarisation | None"
    refused: str = ""  # why nothing could be planted

    @property
    def verdict(self) -> "Outcome":
        """Pass above the floor, fail below it; not a pass where the suite missed what was planted."""
        if self.early.outcome == "below the floor":
            return "fail"
        weak = bool(self.refused) or (self.planted is not None and not self.planted.passed)
        return "pass" if self.early.outcome == "above the floor" and not weak else "cannot tell"

    def lines(self) -> list[str]:
        """What a person reads."""
        early, share = self.early, self.early.robust
        side = early.outcome.replace("the floor", f"the floor of {early.floor:.0%}")
        told = [
            f"{self.verdict}: {self.asked['model']} {'seems' if self.verdict == 'cannot tell' else 'is'} {side}.",
            f"  It withstands the attacks on {share.value:.1%} [{share.lo:.1%}, {share.hi:.1%}] of {early.samples} of "
            f"{early.of} samples under {self.asked['threat']}; {early.clean:.1%} are right unchanged.",
        ]
        if early.outcome == "undecided" and not early.problems:
            told.append("  These samples are too few to tell on which side of the floor it is.")
        told += [f"  {problem}" for problem in early.problems]
        if self.planted is not None:
            told.append(f"  {self.planted.says} (The suite alone, without the escalation that the number had.)")
        return told + ([f"  Nothing could be planted: {self.refused}"] if self.refused else [])

    def values(self) -> dict[str, Any]:
        """What a pipeline reads."""
        planted = self.planted.model_dump() | {"passed": self.planted.passed} if self.planted else None
        return {"verdict": self.verdict, **self.asked, "decision": self.early.model_dump(), "planted": planted}


def check(
    model: str, dataset: str, *, threat: "ThreatModel", floor: float, suite: str, seed: int, planted: int
) -> Checked:
    """On which side of the floor the model is on the dataset's test split.

    With planted > 0 also whether the suite finds adversarial examples that are known to exist, on so many samples.
    Raises WrongInput, UnknownPart, DataMissing or ModelRejected for what cannot be checked.
    """
    from tasks.data import load
    from tasks.fetch import load_model
    from tasks.metrics import binarise, decide_early
    from tasks.parts import named

    with named(model, dataset):
        x, y = load(dataset)["test"]
        network = load_model(model, x.shape[1:])
    asked = {"model": model, "dataset": dataset, "threat": str(threat), "suite": suite, "seed": seed}
    early = decide_early(network, x, y, threat=threat, floor=floor, suite=suite, seed=seed)
    if not planted:
        return Checked(asked, early, None)
    try:
        found = binarise(network, x, threat=threat, suite=suite, samples=planted, seed=seed)
    except WrongInput as error:  # what was measured is not thrown away
        return Checked(asked, early, None, str(error))
    return Checked(asked, early, found)
