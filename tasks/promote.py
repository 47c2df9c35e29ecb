"""Register a version, and move the alias champion if and only if the verdict is pass."""

import logging
from datetime import UTC, datetime
from shlex import quote

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.errors import WrongInput
from tasks.ledger import LOOKING, write_findings
from tasks.metrics import RobustnessReport
from tasks.models import StoredModel
from tasks.posture.findings import crowned
from tasks.recall import known_of
from tasks.record import version_tags
from tasks.redact import veiled
from tasks.reserve import reserved
from tasks.track import CROWNED, TRAINED_ON, aliases, register, set_alias, tag_version
from tasks.verdicts import Verdict

log = logging.getLogger("redoubt")


@task(name="enter", task_run_name="enter-{model.stage}", cache_policy=NO_CACHE)
@veiled
def enter(name: str, model: StoredModel, report: RobustnessReport, verdict: Verdict) -> int:
    """The version that the model became, with its verdict and numbers. No alias moves before its evidence stands.

    It was trained on the data of the report, which its card says.
    """
    trained_on = f"{report.data}, split train, digest {report.data_digest}"
    with reserved(name):
        return register(name, model, version_tags(report, verdict) | {TRAINED_ON: trained_on})


@task(name="promote", task_run_name="promote-{model.stage}", cache_policy=NO_CACHE)
@veiled
def promote(
    name: str, number: int, model: StoredModel, report: RobustnessReport, verdict: Verdict, *, against: int | None
) -> None:
    """On pass the version is champion and the one before is `previous`; else it is challenger.

    against: the champion that it was compared with. Where another one was crowned since, it stays a challenger.
    """
    with reserved(name):
        moved = verdict.outcome == "pass" and move_champion(name, number, model.run_id, against=against)
        if not moved:
            set_alias(name, "challenger", number)
    suite = report.threats[0].suite
    if moved and suite.partition("+")[0] in LOOKING:
        told = "version %d of %r becomes champion by a pass under suite %r, which is there to look, not to decide"
        log.warning(f"{told}; measure it: redoubt reattack %s --suite standard", number, name, suite, quote(name))


@task(name="crown", cache_policy=NO_CACHE)
@veiled
def crown(name: str, number: int, run_id: str, *, against: int | None) -> bool:
    """Make a registered version champion that passed in this run, and close what it has mended; whether it was done.

    against: the champion that it was compared with. Nothing is done where another one was crowned since.
    """
    with reserved(name):
        if not move_champion(name, number, run_id, against=against):
            return False
        now = datetime.now(UTC)
        before = known_of(name).findings
        write_findings(name, [crowned(finding, number, now) for finding in before], before)
    return True


def move_champion(name: str, number: int, run_id: str, *, against: int | None) -> bool:
    """Let `champion` name the version that passed in a run, and `previous` the one before; whether it does now."""
    before = aliases(name).get("champion")
    if before == number:
        return True
    if before != against:
        told = "version %d of %r passed, but against %s, and there is %s by now. Compare them: redoubt reattack %s"
        there = _champion(against), _champion(before)
        log.warning(f"{told} --versions %d --again", number, name, *there, quote(name), number)
        return False
    tag_version(name, number, {CROWNED: run_id})
    if before is not None:
        set_alias(name, "previous", before)
    set_alias(name, "champion", number)
    return True


def _champion(number: int | None) -> str:
    return "no champion" if number is None else f"champion {number}"


def roll_back(name: str) -> int:
    """The version that is champion again: the one that `previous` names. Raises WrongInput if there is none."""
    known_of(name)
    with reserved(name):
        now = aliases(name)
        if "previous" not in now or "champion" not in now:
            raise WrongInput(
                f"model {name!r} has no previous champion to go back to. See: redoubt history {quote(name)}"
            )
        set_alias(name, "champion", now["previous"])
        set_alias(name, "previous", now["champion"])
        return now["previous"]
