"""judge(): pass, fail or cannot tell, with the reasons. Fails closed: no verdict is better than a kind one."""

from collections.abc import Sequence
from datetime import datetime

from tasks.errors import WrongInput
from tasks.metrics import PairReport, RobustnessReport, Share, Sign, ThreatReport
from tasks.metrics.replayed import ReplayReport
from tasks.verdicts.champion import Asked, against, asks_as_much
from tasks.verdicts.checks import Check, Verdict
from tasks.verdicts.policy import Policy
from tasks.verdicts.trust import (
    believed,
    contradictions,
    is_number,
    pair_is_whole,
    problems,
    trust_in_clean,
    trust_under,
    was_checked,
)

NOTHING = Asked()
NAMED = 5  # samples that a reason names


def judge(
    report: RobustnessReport,
    policy: Policy,
    champion: RobustnessReport | None = None,
    now: datetime | None = None,
    *,
    replays: Sequence[ReplayReport] = (),
    asked: Asked = NOTHING,
) -> Verdict:
    """The verdict on a report, and on what it lost against the champion if there is one.

    A check on a number that is void says neither pass nor fail. now: by default the clock's; the champion's report
    must not be older than the policy allows. replays: what the stored examples of earlier versions did.
    asked: what the champion was asked when it became that, all of which is to be asked again.
    """
    clean = _floor("clean accuracy", report.clean, policy.clean_floor)
    checks = [_enough(report, policy), _numbers(report), believed(clean, trust_in_clean(report))]
    for threat in report.threats:
        trust = trust_under(report, threat)
        floor = policy.floors.get(threat.threat.name, policy.floor)
        checks += [_attacked(threat), _sound(threat)]
        checks.append(believed(_floor(f"robust accuracy under {threat.threat}", threat.robust, floor), trust))
        checks += [believed(_pair(pair, threat, policy), trust) for pair in threat.pairs]
        checks += [believed(_replayed(r, threat, floor, report.confidence), trust) for r in _of(replays, threat)]
    checks += _covered(report, policy)
    if champion is not None:
        checks += against(champion, report, policy, now) + asks_as_much(report, asked, policy)
    return Verdict.of(checks)


def _of(replays: Sequence[ReplayReport], threat: ThreatReport) -> list[ReplayReport]:
    """Those of the threat model that had anything to show."""
    return [replay for replay in replays if replay.threat == threat.threat and replay.standing is not None]


def _replayed(replay: ReplayReport, threat: ThreatReport, floor: float, confidence: float) -> Check:
    """Whether the floor still holds when the stored examples count as one more attack: necessary, never enough."""
    what = f"stored examples under {threat.threat}"
    try:
        both = threat.held() & ~replay.fell()
    except ValueError as error:
        return Check(name=what, outcome="cannot tell", reason=f"{what} were replayed on other samples: {error}")
    taken, joint = int(threat.held().sum() - both.sum()), Share.of(int(both.sum()), len(both), confidence=confidence)
    shown = "none falls that the fresh attacks had left standing" if not taken else f"{taken} fall that had stood"
    check = _floor(f"with them robust accuracy under {threat.threat}", joint, floor)
    if replay.standing is None:
        return check
    withstood = f"{replay.standing.value:.1%} of {replay.standing.n} samples withstand their stored examples"
    return Check(name=what, outcome=check.outcome, reason=f"{withstood}; {shown}; {check.reason}")


def _floor(what: str, share: Share, floor: float) -> Check:
    if not is_number(share):
        return Check(name=what, outcome="cannot tell", reason=f"{what} is not a number")
    figure = f"{what} {share.value:.1%} [{share.lo:.1%}, {share.hi:.1%}]"
    if share.lo >= floor:
        return Check(name=what, outcome="pass", reason=f"{figure} clears the floor of {floor:.0%}")
    if share.hi < floor:
        return Check(name=what, outcome="fail", reason=f"{figure} is below the floor of {floor:.0%}")
    reason = f"{figure} straddles the floor of {floor:.0%}: {share.n} samples are too few to decide"
    return Check(name=what, outcome="cannot tell", reason=reason)


def _enough(report: RobustnessReport, policy: Policy) -> Check:
    n = report.clean.n
    try:
        needed = policy.smallest_sample(report.confidence, champion=False)
    except WrongInput as never:
        return Check(name="sample size", outcome="cannot tell", reason=str(never))
    if n >= needed:
        return Check(name="sample size", outcome="pass", reason=f"{n} samples were measured, {needed} are needed")
    reason = f"{n} samples were measured, the policy needs {needed}"
    return Check(name="sample size", outcome="cannot tell", reason=reason)


def _numbers(report: RobustnessReport) -> Check:
    found = contradictions(report)
    if found:
        return Check(name="numbers", outcome="cannot tell", reason="; ".join(found))
    return Check(name="numbers", outcome="pass", reason="every number agrees with its samples")


def _attacked(threat: ThreatReport) -> Check:
    name, broken = f"attacks under {threat.threat}", problems(threat)
    if broken:
        return Check(name=name, outcome="cannot tell", reason="; ".join(broken))
    tried = (row for row in threat.attacks if row.tried and row.of_suite)
    names = ", ".join(row.name for row in tried if row.forward_samples + row.backward_samples > 0)  # some had no turn
    if not names:
        return Check(name=name, outcome="cannot tell", reason=f"no attack tried a sample under {threat.threat}")
    return Check(name=name, outcome="pass", reason=f"{names} ran to the end under {threat.threat}")


def _sound(threat: ThreatReport) -> Check:
    name, soundness = f"soundness under {threat.threat}", threat.soundness
    if soundness is None or not was_checked(threat):
        reason = f"robust accuracy under {threat.threat}: its soundness was not checked"
        return Check(name=name, outcome="cannot tell", reason=reason)
    if not soundness.sound:
        said = "; ".join(sign.says.rstrip(".") for sign in soundness.alarms)
        reason = f"robust accuracy under {threat.threat} is not sound: {said}"
        return Check(name=name, outcome="cannot tell", reason=reason)
    return Check(name=name, outcome="pass", reason=f"{_signs(soundness.signs)} under {threat.threat}")


def _signs(signs: tuple[Sign, ...]) -> str:
    looked = sum(sign.state == "ok" for sign in signs)
    answered = sum(sign.answered for sign in signs)
    fired = f"{answered} fired and {'was' if answered == 1 else 'were'} answered" if answered else "none fired"
    return f"{looked} {'sign was' if looked == 1 else 'signs were'} checked; {fired}"


def _pair(pair: PairReport, threat: ThreatReport, policy: Policy) -> Check:
    name = f"class {pair.source} taken for {pair.target} under {threat.threat}"
    if not pair_is_whole(pair) or pair.flipped is None:
        why = "; ".join(pair.problems) or ("no sample of the class was right" if pair.n == 0 else "no usable number")
        return Check(name=name, outcome="cannot tell", reason=f"{name}: not measured ({why})")
    if pair.rows:
        places = ", ".join(map(str, pair.rows[:NAMED])) + (", ..." if len(pair.rows) > NAMED else "")
        reason = f"{name}: {len(pair.rows)} of {pair.n} samples flipped, at places {places}; none may"
        return Check(name=name, outcome="fail", reason=reason)
    reason = f"{name}: none of {pair.n} samples flipped, at most {pair.flipped.hi:.1%} would"
    if pair.flipped.hi > policy.pair_ceiling:
        reason = f"{reason}; the policy asks for at most {policy.pair_ceiling:.1%}, so these are too few samples"
        return Check(name=name, outcome="cannot tell", reason=reason)
    return Check(name=name, outcome="pass", reason=reason)


def _covered(report: RobustnessReport, policy: Policy) -> list[Check]:
    """What is open because something was not measured under every threat model; empty where nothing is missing."""
    found = []
    unknown = set(policy.floors) - {threat.threat.name for threat in report.threats}
    if unknown:
        found.append(f"policy.floors names {', '.join(sorted(unknown))}, which was not measured")
    pairs = {(pair.source, pair.target) for threat in report.threats for pair in threat.pairs}
    for threat in report.threats:
        missing = pairs - {(pair.source, pair.target) for pair in threat.pairs}
        if missing:
            named = ", ".join(f"{source} taken for {target}" for source, target in sorted(missing))
            found.append(f"under {threat.threat} class {named} was not measured")
    return [Check(name="coverage", outcome="cannot tell", reason=reason) for reason in found]
