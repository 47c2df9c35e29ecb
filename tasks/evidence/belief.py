"""Whether a number can be believed, in plain sentences. The page, the terminal and the Markdown all say these."""

from typing import Literal

from tasks.metrics import Sign, Soundness, ThreatReport
from tasks.metrics.soundness import Kind

Belief = Literal["no alarm", "answered", "void", "not checked"]

TITLES: dict[Kind, str] = {
    "masking": "Masked gradients",
    "failure": "Attacks that fail",
    "convergence": "Convergence",
    "measurement": "The measurement itself",
}
MEANINGS: dict[Kind, str] = {
    "masking": "Masked gradients make a number too kind, so the true robust accuracy may be far lower.",
    "failure": "An attack that fails through a fault of its own leaves samples standing that a working one would turn, "
    "so the true robust accuracy may be lower; that nothing turns one answer to everything is no merit.",
    "convergence": "A search that was still finding samples when it ended has not found them all, "
    "so the true robust accuracy may be lower.",
    "measurement": "What was measured is not what the number claims, so it may be wrong in either direction.",
}


def fired(sign: Sign) -> bool:
    """Whether the sign was an alarm at any time."""
    return "alarm" in (sign.first, sign.state)


def belief(report: ThreatReport) -> Belief:
    """What a reader may make of the number. Where no sign was looked at, it is not checked."""
    if causes(report):
        return "void"
    signs = report.soundness.signs if report.soundness else ()
    if any(fired(sign) for sign in signs):
        return "answered"
    return "no alarm" if any(sign.state == "ok" for sign in signs) else "not checked"


def causes(report: ThreatReport) -> tuple[str, ...]:
    """What voids the number: the evaluation's problems, and every alarm that stands with how many samples raised it."""
    alarms = report.soundness.alarms if report.soundness else ()
    return (*report.problems, *(_named(sign) for sign in alarms))


def explain(report: ThreatReport) -> str:
    """What was checked, what fired and what that means, in a sentence or two."""
    if report.soundness is None:
        found = f"The number is void: {'; '.join(report.problems)}. Nothing else was" if report.problems else "Not"
        return f"{found} checked."
    if belief(report) == "void":
        return _voided(report, report.soundness)
    return _calm(report, report.soundness)


def line(stage: str, report: ThreatReport) -> str:
    """The same in one line that names the number."""
    number = f"{stage}: robust accuracy under {report.threat}"
    if belief(report) == "void":
        return f"{number} is void: {'; '.join(causes(report))}"
    if belief(report) == "not checked":
        return f"{number} was not checked"
    return f"{number}: {explain(report)}"


def cost(soundness: Soundness) -> str:
    """What the checks cost, in a sentence."""
    said = f"The checks cost {soundness.passes:,} passes, {soundness.share:.1%} of the evaluation's"
    more = sum(step.passes for step in soundness.steps)
    return f"{said}; the escalation cost {more:,} more." if soundness.steps else f"{said}."


def _named(sign: Sign) -> str:
    return f"{sign.name} ({_count(len(sign.samples), 'sample')})" if sign.samples else sign.name


def _voided(report: ThreatReport, soundness: Soundness) -> str:
    parts = [f"The number is void: {'; '.join(causes(report))}."]
    if not soundness.alarms:
        return f"{parts[0]} {_calm(report, soundness)}"
    parts += dict.fromkeys(MEANINGS[sign.kind] for sign in soundness.alarms)
    n, standing = sum(map(fired, soundness.signs)), len(soundness.alarms)
    said = f"{n} of {_count(len(soundness.signs), 'sign')} fired and {standing} {_stand(standing)} unanswered"
    if soundness.before is not None:
        said += f"; in the escalation {_moved(report, soundness.before)}"
    return " ".join([*parts, f"{said}.", *_left_out(soundness)])


def _calm(report: ThreatReport, soundness: Soundness) -> str:
    """The sentence where no alarm stands."""
    if any(map(fired, soundness.signs)):
        return _answered(report, soundness)
    return _quiet(soundness)


def _answered(report: ThreatReport, soundness: Soundness) -> str:
    signs = [sign for sign in soundness.signs if fired(sign)]
    n, them = len(signs), "it" if len(signs) == 1 else "them"
    how = {1: "it was answered", 2: "both were answered"}.get(n, f"all {n} were answered")
    if not all(sign.answered for sign in signs):
        how = "it stands no more" if n == 1 else "none of them stands any more"  # it has become inapplicable
    said = f"{n} of {_count(len(soundness.signs), 'sign')} fired; {how}"
    if soundness.before is not None:
        said += f": {_moved(report, soundness.before)} and no longer depends on {them}"
    return " ".join([f"{said}.", *_left_out(soundness)])


def _quiet(soundness: Soundness) -> str:
    left, n = _left_out(soundness), len(soundness.signs)
    looked = sum(sign.state == "ok" for sign in soundness.signs)
    if not looked:
        return f"Not checked: none of the {_count(n, 'sign')} was looked at."
    said = f"All {n} signs were" if looked == n > 1 else f"{looked} of {_count(n, 'sign')} {_were(looked)}"
    return " ".join([f"{said} checked and none fired.", *left])


def _left_out(soundness: Soundness) -> list[str]:
    """A sentence on the signs that say nothing, if there are any."""
    states = [sign.state for sign in soundness.signs]
    unrun, beside = states.count("not run"), states.count("not applicable")
    parts = [f"{_count(unrun, 'sign')} {_were(unrun)} not run"] if unrun else []
    parts += [f"{_count(beside, 'sign')} {'does' if beside == 1 else 'do'} not apply to this model"] if beside else []
    return [f"{' and '.join(parts)}."] if parts else []


def _moved(report: ThreatReport, before: float) -> str:
    start, end = f"{before:.1%}", f"{report.robust.value:.1%}"
    if start == end:
        return f"the number stayed at {end}"
    return f"the number {'fell' if report.robust.value < before else 'rose'} from {start} to {end}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def _were(n: int) -> str:
    return "was" if n == 1 else "were"


def _stand(n: int) -> str:
    return "stands" if n == 1 else "stand"
