"""New-attack day: the current suite over versions that were measured under another one, or never."""

import logging

from prefect import flow
from pydantic import BaseModel, Field

from flows.asked import already, chosen, like_before, run_to_follow
from flows.config import EvaluateConfig
from flows.evaluate import evaluate_model
from flows.exits import BROKE, EXIT
from flows.plans import how, plan_of
from tasks.errors import RedoubtError
from tasks.evidence import headline
from tasks.recall import known_of
from tasks.redact import redacted, told, veiled
from tasks.track import Version, aliases, names, registered


class Reattacked(BaseModel, frozen=True, extra="forbid"):
    """What came of one version."""

    name: str = Field(description="of the registered model")
    version: int
    verdict: str = Field("", description="pass, fail or cannot tell; empty where it broke")
    measured: bool = Field(description="false where it stood in the store, or broke")
    run_id: str = Field("", description="in which it was judged")
    says: str

    @property
    def exit_code(self) -> int:
        """As of `redoubt run`."""
        return EXIT.get(self.verdict, BROKE)


@flow(name="redoubt-reattack", description="The current suite over a registered model's versions.")
@veiled
def reattack_versions(
    name: str,
    versions: str | list[int] = "live",
    suite: str | None = None,
    again: bool = False,
    like: str | None = None,
) -> list[Reattacked]:
    """Measure versions under the current suite, oldest first; what was measured under it before is left alone.

    versions: `live`, those that bear an alias; `all`; or some. suite: another than the last time. again: also those
    that were measured under it. like: the version, by number or alias, that all are measured like; champion: as when
    it became that. A version that breaks does not keep the others from being measured.
    """
    found, as_in = chosen(name, versions), ""
    if like:
        known = known_of(name)
        as_in = run_to_follow(known.version(known.numbered(like)), as_champion=like.removeprefix("@") == "champion")
    return [_reattacked(version, suite, again, as_in) for version in found]


@flow(name="redoubt-reattack-all", description="Every live version of every registered model, attacked again.")
@veiled
def reattack_all(suite: str | None = None, again: bool = True) -> list[Reattacked]:
    """Attack every version that bears an alias, and the newest one, of every model that has a plan or was measured.

    suite: another than the plan's. again: though nothing has changed since. Neither a version nor a model that breaks
    keeps the others from being measured.
    """
    found: list[Reattacked] = []
    for name in names():
        try:
            plan = plan_of(name)
            asked = [(version, how(version, plan, suite=suite)) for version in _live(name)]
        except Exception as error:  # of whatever kind: the other models are still to be attacked
            found += [broken(name, 0, error)]
            continue
        found += [measured(version, config, again=again) for version, config in asked if config]
    return found


def measured(version: Version, config: EvaluateConfig, *, again: bool) -> Reattacked:
    """What came of measuring the version in this way; what broke is told, not raised."""
    try:
        story = evaluate_model(config, again=again)
    except Exception as error:  # of whatever kind: the other versions are still to be measured
        return broken(version.name, version.number, error)
    outcome, judged_in = story.verdict.outcome, story.chapters[-1].run_id
    says = f"version {version.number}: {outcome}. {headline(story)}"
    return Reattacked(
        name=version.name, version=version.number, verdict=outcome, measured=True, run_id=judged_in, says=says
    )


def broken(name: str, number: int, error: Exception) -> Reattacked:
    """What is told of a version that could not be measured; 0 for the whole model."""
    what = f"version {number}" if number else f"model {name!r}"
    said = redacted(str(error)) if isinstance(error, RedoubtError) else told(error)
    logging.getLogger("redoubt").warning("%s: %s", what, said, exc_info=not isinstance(error, RedoubtError))
    return Reattacked(name=name, version=number, measured=False, says=f"{what}: not measured: {said}")


def _live(name: str) -> list[Version]:
    """The versions that bear an alias, and the newest, oldest first."""
    held, known = set(aliases(name).values()), registered(name)
    return [version for version in known if version.number in held or version is known[-1]]


def _reattacked(version: Version, suite: str | None, again: bool, as_in: str) -> Reattacked:
    try:
        config = like_before(version, suite=suite, run_id=as_in)
        record = None if again else already(version, config)
    except RedoubtError as error:
        return broken(version.name, version.number, error)
    if record is None:
        return measured(version, config, again=again)
    says = f"version {version.number}: {record.verdict}, as measured {record.measured_at}"
    return Reattacked(
        name=version.name,
        version=version.number,
        verdict=record.verdict,
        measured=False,
        run_id=record.run_id,
        says=says,
    )
