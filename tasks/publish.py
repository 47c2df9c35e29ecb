"""Leave behind what people look at: the page, Prefect's artifacts, an event."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import numpy as np
import torch
from prefect import task
from prefect.artifacts import Artifact, LinkArtifact, MarkdownArtifact, TableArtifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from torch import Tensor

from tasks.announce import announce
from tasks.data import Data, load_split
from tasks.errors import EvidenceBroken
from tasks.evidence import Chapter, Picture, Samples, Story, render_markdown, render_page, to_picture
from tasks.home import folder
from tasks.metrics import ThreatReport
from tasks.prove import append
from tasks.redact import veiled
from tasks.results import PAGE, STORY, load_adversarial, load_outcomes
from tasks.track import PAGE_OF, aliases, as_json, log_files, seconds, set_tags, tag_version
from tasks.verdicts import Policy

PICTURES = 6  # for each stage and threat model
ALARMED = 12  # of the samples that raised an alarm, likewise


@task(name="publish", cache_policy=NO_CACHE)
@veiled
def publish(
    name: str, run_id: str, data: Data, policy: Policy, chapters: Sequence[Chapter], rounds: Sequence[Chapter] = ()
) -> Story:
    """The story of the run. Its page and itself are kept in the run, and their essence in Prefect."""
    held = aliases(name)
    story = Story(
        name=name,
        run_id=run_id,
        data=data,
        policy=policy,
        chapters=tuple(chapters),
        rounds=tuple(rounds),
        version=chapters[-1].version,
        champion=held.get("champion"),
        previous=held.get("previous"),
        seconds=seconds(run_id),
    )
    page = render_page(story, *shown(story))
    path = page_path(story)
    path.write_text(page, encoding="utf-8")
    files = {PAGE: page.encode(), STORY: as_json(story.model_dump(mode="json"))}
    _vouch(story, files)
    log_files(story.run_id, files)  # afterwards: a kill in between leaves no page that nobody vouches for
    set_tags(story.run_id, {"redoubt.verdict": story.verdict.outcome})
    _show(story, path)
    announce(
        f"verdict.{story.verdict.outcome.replace(' ', '-')}",
        story.name,
        version=story.version,
        run_id=story.run_id,
        reasons=story.verdict.reasons,
        more={"stage": story.chapters[-1].stage},
    )
    return story


def _show(story: Story, page: Path) -> None:
    """Leave the verdict, the curves and the way to the page in Prefect, all at the same time."""
    key, verdict = f"redoubt-{_slug(story.name)}", f"Verdict on {story.name}"
    made = (
        MarkdownArtifact(key=key, description=verdict, markdown=render_markdown(story)),
        TableArtifact(key=f"{key}-curves", description="Robust accuracy against eps", table=_curves(story)),
        LinkArtifact(key=f"{key}-page", description="The whole report", link=page.as_uri()),
    )
    with ThreadPoolExecutor(1) as apart:  # the caller's thread may run a loop already, as a notebook's does
        apart.submit(copy_context().run, asyncio.run, _left(made)).result()


async def _left(made: Sequence[Artifact]) -> None:
    """Leave the artifacts in Prefect through one client: each one alone would make its own."""
    async with get_client() as api:
        await asyncio.gather(*(artifact.acreate(api) for artifact in made))


def _vouch(story: Story, files: Mapping[str, bytes]) -> None:
    """Tie page and story to the evidence of their versions, so that `redoubt verify` sees a change in them."""
    evidence = [chapter.evidence for chapter in story.chapters if chapter.evidence]
    if not evidence:
        return
    appendix = append(story.run_id, evidence, files)
    for chapter in story.chapters:
        if chapter.evidence and chapter.version is not None:
            place = f"{story.run_id}:{appendix}"
            tag_version(story.name, chapter.version, {f"{PAGE_OF}{chapter.evidence[:16]}": place})


def page_path(story: Story) -> Path:
    """Where the page of a run lies on this machine."""
    return folder("reports") / f"{_slug(story.name)}-{story.run_id}.html"


def shown(story: Story) -> tuple[list[Picture], list[Samples]]:
    """What fooled each model, and the samples that raised an alarm."""
    pictures: list[Picture] = []
    samples: list[Samples] = []
    x, y = load_split(story.data, "test")
    for chapter in story.chapters:
        for report in chapter.report.threats:
            found = load_adversarial(chapter.run_id, report.threat.name)
            pictures += _gallery(chapter, report, found, x, y)
            if places := to_picture(report.soundness, ALARMED):
                samples.append(_alarmed(chapter, report, places, found, x, y))
    return pictures, samples


def _gallery(
    chapter: Chapter, report: ThreatReport, found: dict[str, np.ndarray], x: Tensor, y: Tensor
) -> list[Picture]:
    """The first samples that the attacks turned, one for each true class where possible."""
    rows = torch.from_numpy(found["rows"])
    seen = y[rows].tolist()
    order = sorted(range(len(seen)), key=lambda i: (seen[:i].count(seen[i]), i))
    return [
        Picture(
            stage=chapter.stage,
            threat=str(report.threat),
            x=x[rows[i]],
            x_adv=torch.from_numpy(found["x_adv"][i]),
            y=seen[i],
            prediction=int(found["prediction"][i]),
        )
        for i in order[:PICTURES]
    ]


def _alarmed(
    chapter: Chapter, report: ThreatReport, places: list[int], found: dict[str, np.ndarray], x: Tensor, y: Tensor
) -> Samples:
    """The samples at these places among the measured ones, with what fooled the model there. Raises EvidenceBroken."""
    table = load_outcomes(chapter.run_id, report.threat.name)
    if len(table["row"]) != report.robust.n:
        raise EvidenceBroken(
            f"the outcomes of {chapter.stage} under {report.threat} hold {len(table['row'])} samples, its report "
            f"{report.robust.n}. Run the evaluation again: no alarm can be tied to its samples."
        )
    rows, prediction = table["row"].tolist(), table["prediction"].tolist()
    turned = {int(row): torch.from_numpy(x_adv) for row, x_adv in zip(found["rows"], found["x_adv"], strict=True)}
    pictures = {
        place: Picture(
            stage=chapter.stage,
            threat=str(report.threat),
            x=x[rows[place]],
            x_adv=turned.get(rows[place]),
            y=int(y[rows[place]]),
            prediction=prediction[place],
        )
        for place in places
    }
    return Samples(stage=chapter.stage, threat=report.threat.name, rows=rows, pictures=pictures)


def _curves(story: Story) -> list[dict[str, str | float]]:
    return [
        {"stage": c.stage, "threat": str(t.threat), "eps": p.eps, "robust_accuracy": p.robust.value}
        for c in story.chapters
        for t in c.report.threats
        for p in t.curve
    ]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"
