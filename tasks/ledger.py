"""The findings of a registered model: what an evaluation says of them, and where they are written down."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from shlex import quote
from typing import TYPE_CHECKING

import numpy as np

from tasks.errors import WrongInput
from tasks.posture.finding import Cost, Finding, Observation, Replayed, Reproducer
from tasks.posture.findings import accept, advance, reopen
from tasks.results import load_adversarial, to_npz
from tasks.track import log_bytes, tag_model

if TYPE_CHECKING:
    from tasks.data import Data
    from tasks.metrics import PairReport, RobustnessReport, ThreatReport
    from tasks.metrics.replayed import ReplayReport
    from tasks.recall import Known
    from tasks.verdicts import Policy, Verdict

FINDING = "redoubt.finding."  # a tag of the registered model for each finding
LOOKING = ("quick", "warm")  # suites whose pass closes no finding
FEW = 16  # examples that a reproducer holds: those of the smallest change


def observed(
    name: str,
    version: int,
    run_id: str,
    data: "Data",
    report: "RobustnessReport",
    verdict: "Verdict",
    policy: "Policy",
    replays: Sequence["ReplayReport"],
) -> list[Observation]:
    """What one evaluation says about every weakness that its policy asks for: one for each threat and critical pair.

    A pass under a suite that is there to look, and not to decide, tells nothing.
    """
    looking = report.threats[0].suite.partition("+")[0] in LOOKING
    checks = {check.name: check for check in verdict.checks}
    found = []
    for threat in report.threats:
        common = {
            "name": name,
            "version": version,
            "run_id": run_id,
            "at": report.measured_at,
            "data": data.name,
            "threat": threat.threat.name,
            "label": str(threat.threat),
            "sound": threat.soundness is not None and threat.soundness.sound and not threat.problems and not looking,
            "cost": _cost(threat),
            "attacks": tuple(row.name for row in threat.attacks if row.fooled),
        }
        floor = checks[f"robust accuracy under {threat.threat}"]
        again = checks.get(f"stored examples under {threat.threat}")
        answer: Replayed = again.outcome if again is not None and again.outcome != "cannot tell" else "not run"
        asked = policy.floors.get(threat.threat.name, policy.floor)
        of_floor = {"fresh": floor.outcome, "says": floor.reason, "floor": asked, "replay": answer}
        found.append(Observation(kind="robustness", **of_floor, **common))
        withstood = next((replay.pairs for replay in replays if replay.threat == threat.threat), {})
        for pair in threat.pairs:
            check = checks[f"class {pair.source} taken for {pair.target} under {threat.threat}"]
            held: Replayed = _said(withstood.get(subject(pair)))
            found.append(
                Observation(
                    kind="pair", subject=subject(pair), fresh=check.outcome, replay=held, says=check.reason, **common
                )
            )
    return found


def _said(held: bool | None) -> Replayed:
    return "not run" if held is None else "pass" if held else "fail"


def subject(pair: "PairReport") -> str:
    """How a finding calls a critical pair."""
    return f"{pair.source} taken for {pair.target}"


def advanced(ledger: Sequence[Finding], observations: Sequence[Observation]) -> list[Finding]:
    """The ledger after the observations."""
    known: dict[str, Finding | None] = {finding.id: finding for finding in ledger}
    for observation in observations:
        known[observation.id] = advance(known.get(observation.id), observation)
    return [finding for finding in known.values() if finding is not None]


def with_reproducers(observations: Sequence[Observation], report: "RobustnessReport") -> list[Observation]:
    """The same, those that failed with a file of examples that show it, which is kept in their run."""
    threats = {threat.threat.name: threat.threat.model_dump_json() for threat in report.threats}
    return [
        _with_reproducer(seen, threats[seen.threat], report.seed) if seen.fresh == "fail" else seen
        for seen in observations
    ]


def _with_reproducer(seen: Observation, threat: str, seed: int) -> Observation:
    pair = f"-{seen.subject.replace(' taken for ', '-to-')}" if seen.kind == "pair" else ""
    arrays = load_adversarial(seen.run_id, f"{seen.threat}{pair}")
    if not len(arrays["rows"]):
        return seen
    path = f"findings/{seen.id}.npz"
    few = _nearest(arrays, seen.threat.partition("_")[0])
    log_bytes(seen.run_id, to_npz(**few, threat=np.array(threat)), path)
    command = f"redoubt findings {quote(seen.name)} --replay {seen.id} --on {seen.version}"
    reproducer = Reproducer(uri=f"runs:/{seen.run_id}/{path}", seed=seed, command=command)
    return seen.model_copy(update={"reproducer": reproducer})


def _nearest(arrays: Mapping[str, np.ndarray], norm: str) -> dict[str, np.ndarray]:
    """The few examples of the smallest change in the threat's own norm."""
    delta = (arrays["x_adv"] - arrays["x"]).reshape(len(arrays["x"]), -1)
    order = {"l2": 2, "l1": 1, "l0": 0, "l0-pixels": 0}.get(norm, np.inf)
    few = np.linalg.norm(delta, ord=order, axis=1).argsort(kind="stable")[:FEW]
    return {name: array[few] for name, array in arrays.items()}


def finding_tags(findings: Sequence[Finding], known: Sequence[Finding] = ()) -> dict[str, str]:
    """The findings as tags of the registered model, but for those that are known to be there."""
    there = {finding.id: finding for finding in known}
    changed = [finding for finding in findings if finding != there.get(finding.id)]
    return {f"{FINDING}{finding.id}": finding.model_dump_json() for finding in changed}


def write_findings(name: str, findings: Sequence[Finding], known: Sequence[Finding] = ()) -> None:
    """Keep the findings with the registered model, but for those that are known to be there."""
    tag_model(name, finding_tags(findings, known))


def finding_of(known: "Known", wanted: str) -> Finding:
    """The finding of that id. Raises WrongInput, with those that are there."""
    found = next((finding for finding in known.findings if finding.id == wanted), None)
    if found is None:
        there = ", ".join(finding.id for finding in known.findings) or "none"
        raise WrongInput(f"{known.name!r} has no finding {wanted!r}. There are: {there}.")
    return found


def accept_finding(known: "Known", wanted: str, *, owner: str, expires: str, reason: str, now: datetime) -> Finding:
    """The finding, accepted for a time. Raises WrongInput without an owner, a date within a year, and a reason."""
    finding = accept(finding_of(known, wanted), owner=owner, expires=expires, reason=reason, at=now)
    write_findings(known.name, [finding])
    return finding


def reopen_finding(known: "Known", wanted: str, *, reason: str, now: datetime) -> Finding:
    """The finding, open again. Raises WrongInput for one that is open already, or without a reason."""
    finding = reopen(finding_of(known, wanted), reason=reason, at=now)
    write_findings(known.name, [finding])
    return finding


def _cost(threat: "ThreatReport") -> Cost:
    """What an attack under this threat model took for each sample that it fooled."""
    fooled = max(1, sum(row.fooled for row in threat.attacks))
    return Cost(
        queries=threat.forward_samples / fooled,
        gradients=threat.backward_samples / fooled,
        seconds=threat.seconds / fooled,
    )
