"""New-attack day: the current suite over versions that were measured under another one, or never."""

import logging

from prefect import flow
from pydantic import BaseModel, Field

from flows.asked import already, chosen, like_before
from flows.evaluate import evaluate_model
from flows.exits import BROKE, EXIT
from tasks.errors import RedoubtError
from tasks.evidence import headline
from tasks.track import Version


class Reattacked(BaseModel, frozen=True, extra="forbid"):
    """What came of one version."""

    version: int
    verdict: str = Field("", description="pass, fail or cannot tell; empty where it broke")
    measured: bool = Field(description="false where it stood in the store, or broke")
    run_id: str = ""
    says: str

    @property
    def exit_code(self) -> int:
        """As of `redoubt run`."""
        return EXIT.get(self.verdict, BROKE)


@flow(name="redoubt-reattack", description="The current suite over a registered model's versions.")
def reattack_versions(
    name: str, versions: str | list[int] = "live", suite: str | None = None, again: bool = False
) -> list[Reattacked]:
    """Measure versions under the current suite, oldest first; what was measured under it before is left alone.

    versions: `live`, those that bear an alias; `all`; or some. suite: another than the last time. again: also those
    that were measured under it. A version that breaks does not keep the others from being measured.
    """
    return [_reattacked(version, suite, again) for version in chosen(name, versions)]


def _reattacked(version: Version, suite: str | None, again: bool) -> Reattacked:
    number, told = version.number, f"version {version.number}"
    try:
        config = like_before(version, suite=suite)
        record = None if again else already(version, config)
        if record:
            says = f"{told}: {record.verdict}, as measured {record.measured_at}"
            return Reattacked(version=number, verdict=record.verdict, measured=False, run_id=record.run_id, says=says)
        story = evaluate_model(config, again=again)
    except RedoubtError as error:
        logging.getLogger("redoubt").warning("%s: %s", told, error)
        return Reattacked(version=number, measured=False, says=f"{told}: not measured: {error}")
    verdict = story.verdict
    says = f"{told}: {verdict.outcome}. {headline(story)}"
    return Reattacked(version=number, verdict=verdict.outcome, measured=True, run_id=story.run_id, says=says)
