"""What to do about a check that did not pass: a table that one can read."""

import shlex
from collections.abc import Mapping
from typing import Any

from tasks.posture.record import Record

AGAIN = "Measure it again: {reattack}"
MORE = "Measure more samples: --set evaluation.samples=N, or a larger test split."
ADVICE: dict[tuple[str, str], str] = {  # (how the check's name begins, outcome); the first row that fits counts
    ("sample size", "cannot tell"): MORE,
    ("numbers", "cannot tell"): f"The report contradicts itself and cannot be used. {AGAIN}",
    ("attacks under", "cannot tell"): f"Mend what the attack ran into, which the reason names. {AGAIN}",
    ("soundness under", "cannot tell"): (
        "Look at the signs on the report's page: either the model hides its gradients, which is no defence, or the "
        "suite is too weak for it. Measure it with --set evaluation.suite=deep, or mend the model."
    ),
    ("coverage", "cannot tell"): "Measure under every threat model that the policy names, or take its floor out.",
    ("clean accuracy", "fail"): "Train longer, with more data or a larger network; hardening costs clean accuracy.",
    ("clean accuracy", "cannot tell"): MORE,
    ("robust accuracy under", "fail"): (
        "Harden the model (policy.max_rounds allows the rounds, hardening names the defence), or lower the floor by a "
        "decision that somebody signs, never to make this pass."
    ),
    ("robust accuracy under", "cannot tell"): MORE,
    ("class ", "fail"): "The samples that the reason names are the reproducers: harden against this confusion.",
    ("class ", "cannot tell"): MORE,
    ("stored examples", "fail"): (
        "It falls to what is known already: harden it (defence: adversarial). To train on stored examples alone would "
        "hide the weakness from this check and not mend it."
    ),
    ("stored examples", "cannot tell"): f"The samples are too few, or the examples are of other data. {MORE}",
    ("findings", "fail"): "Mend what is overdue, or let its owner accept it until a date: {findings}",
    ("champion, ", "fail"): "See which samples were lost: {compare}",
    ("champion, ", "cannot tell"): f"The samples are too few to exclude a loss. {MORE}",
    ("champion's questions", "cannot tell"): "Ask it all that the champion was asked: {alike}",
    ("champion", "cannot tell"): "Measure the champion under the same suite and data: {live}",
}


def advice(checks: list[Mapping[str, Any]], record: Record | None) -> list[str]:
    """What to do next about the checks that did not pass, the failed ones first, each piece of advice once."""
    name = shlex.quote(record.name) if record else "NAME"
    version = str(record.version) if record else "VERSION"
    commands = {
        "reattack": f"`redoubt reattack {name} --versions {version} --again`",
        "alike": f"`redoubt reattack {name} --versions {version} --like champion`",
        "live": f"`redoubt reattack {name}`",
        "findings": f"`redoubt findings {name}`",
        "compare": f"`redoubt compare {name} champion {version}`",
    }
    ordered = sorted(checks, key=lambda check: check["outcome"] != "fail")
    found = [_for(check["name"], check["outcome"]) for check in ordered if check["outcome"] != "pass"]
    return [piece.format(**commands) for piece in dict.fromkeys(found)]


def _for(name: str, outcome: str) -> str:
    return next((told for (start, of), told in ADVICE.items() if of == outcome and name.startswith(start)), AGAIN)
