from html.parser import HTMLParser

import pytest
import torch

from tasks.attacks import ThreatModel
from tasks.data import describe, load
from tasks.evidence import Chapter, Picture, Story, render_markdown, render_page, render_summary
from tasks.metrics import EvaluationConfig, evaluate
from tasks.models import build
from tasks.verdicts import Policy, judge


@pytest.fixture(scope="module")
def story() -> Story:
    """Two untrained networks, really measured on 120 digits."""
    splits = load("digits")
    x, y = splits["test"]
    threats = (ThreatModel(norm="linf", eps=0.05), ThreatModel(norm="l2", eps=0.2))
    config, policy, chapters = EvaluationConfig(threats=threats, suite="quick"), Policy(floor=0.3), []
    for seed, stage in enumerate(("baseline", "hardened-1")):
        report, _ = evaluate(build("digits-cnn", seed=seed), x[:120], y[:120], config, stage=stage)
        verdict = judge(report, policy)
        chapters.append(Chapter(stage=stage, run_id="r", version=seed + 1, report=report, verdict=verdict))
    return Story(
        name="digits",
        run_id="abc123",
        data=describe("digits", splits),
        policy=policy,
        chapters=tuple(chapters),
        rounds=(chapters[1],),
        version=2,
        seconds={"validate": 1.25},
    )


class Page(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags, self.links, self.words = [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action") and v]

    def handle_data(self, data):
        self.words.append(data)


def pictures() -> list[Picture]:
    image, row = torch.rand(1, 8, 8), torch.rand(30)
    return [
        Picture(stage="baseline", threat="L-inf 0.05", x=image, x_adv=1 - image, y=3, prediction=8),
        Picture(stage="baseline", threat="L2 0.2", x=row, x_adv=row.flip(0), y=0, prediction=1),
    ]


def test_every_number_of_the_story_stands_on_the_page(story):
    page = Page(render_page(story, pictures()))
    for chapter in story.chapters:
        for threat in chapter.report.threats:
            shares = [threat.clean, threat.robust, *(row.robust for row in threat.attacks)]
            for share in shares:
                assert f"{share.value:.1%}" in page.text
                assert f"[{share.lo:.1%}, {share.hi:.1%}]" in page.text
            assert threat.suite_digest in page.text
        for check in chapter.verdict.checks:
            assert check.reason in page.text
    for fact in (story.data.digest, story.run_id, "version 2", "class 3, taken for 8", "feature"):
        assert fact in page.text


def test_the_page_loads_nothing_from_outside(story):
    html = render_page(story, pictures())
    page = Page(html)
    assert page.tags.count("img") == 3
    assert page.tags.count("svg") == 2
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert "script" not in page.tags
    assert "@import" not in html
    assert "url(http" not in html


def test_a_name_that_is_html_shows_as_text(story):
    evil = "<script>alert(1)</script>"
    html = render_page(story.model_copy(update={"name": evil}))
    assert evil not in html
    assert "&lt;script&gt;" in html
    assert "&lt;script>" in render_markdown(story.model_copy(update={"name": evil}))


def test_a_void_number_is_shown_as_void(story):
    chapter = story.chapters[-1]
    broken = chapter.report.threats[0].model_copy(update={"problems": ("pgd: left the ball",)})
    report = chapter.report.model_copy(update={"threats": (broken, chapter.report.threats[1])})
    void = chapter.model_copy(update={"report": report, "verdict": judge(report, story.policy)})
    page = Page(render_page(story.model_copy(update={"chapters": (void,)})))
    assert "is void" in page.text
    assert "pgd: left the ball" in page.text


@pytest.mark.parametrize("color", [True, False])
def test_the_summary_fits_80_columns_and_says_the_verdicts(story, color):
    text = render_summary(story, width=80, color=color)
    import re

    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(map(len, plain.splitlines())) <= 80
    assert (text != plain) == color
    for chapter in story.chapters:
        assert chapter.verdict.outcome in plain
        for threat in chapter.report.threats:
            assert f"{threat.robust.value:.1%}" in plain


def test_the_markdown_table_has_a_row_a_model(story):
    lines = render_markdown(story).splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 3
    assert len({row.count("|") for row in rows}) == 1
