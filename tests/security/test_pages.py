"""Every page that we make: one style element that its policy names by hash, nothing loaded, nothing run."""

import base64
import hashlib
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from tasks.attacks import ThreatModel
from tasks.data import describe, load
from tasks.evidence import Chapter, Picture, Story, render_markdown, render_page, render_validation
from tasks.metrics import EvaluationConfig, evaluate
from tasks.models import build
from tasks.posture.compare import Measured, compare, compare_page, pictures
from tasks.posture.history import History
from tasks.posture.page import posture_page
from tasks.posture.paper import held
from tasks.posture.record import Record, ThreatRecord
from tasks.statistics import Share
from tasks.verdicts import Policy, judge

EVILS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "</style><style>*{background:url(//evil.example)}</style>",
    "<svg onload=alert(1) style='x:y'>",
    "{{ 7*7 }}{% raw %}",
)
EVIL = "".join(EVILS)
NOW = datetime(2026, 4, 1, tzinfo=UTC)
LABELS = tuple(f"<img src=x onerror=alert({i})>" for i in range(10))


class Page(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags, self.attributes, self.policies, self.styles, self.words = [], [], [], [], []
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "style"
        self.tags.append(tag)
        self.attributes += attrs
        if dict(attrs).get("http-equiv") == "Content-Security-Policy":
            assert "style" not in self.tags  # a policy binds what comes after it
            self.policies.append(dict(attrs)["content"])

    def handle_data(self, data):
        (self.styles if self.inside else self.words).append(data)

    def handle_endtag(self, tag):
        self.inside = False


def record(version: int, right: int, name: str) -> Record:
    threat = ThreatRecord(
        name="linf_0.15", label=name[:25], digest="t", robust=Share.of(right, 20), sound=True, alarms=(), floor=0.5,
        forward_samples=1, backward_samples=1, seconds=1.0,
    )  # fmt: skip
    return Record(
        name=name, version=version, stage=name, run_id="r", measured_at=f"2026-01-0{version}T12:00:00+00:00",
        verdict="fail", reason=name, data=name, data_digest="d", split="test", samples=20, seed=0, seeds=1, suite=name,
        suite_digest="s", weights_digest=f"w{version}", code="c", environment={name: name}, confidence=0.95,
        clean=Share.of(20, 20), threats=(threat,),
    )  # fmt: skip


def compared(name: str) -> str:
    sides = []
    for version, right in ((1, 12), (2, 8)):
        fooled = np.arange(20) >= right
        table = {"row": np.arange(20), "clean_correct": np.ones(20, bool), "fooled": fooled, "prediction": fooled * 1}
        table |= {"y": np.zeros(20, int), "fooled_by": np.where(fooled, name, "")}
        sides.append(Measured(record(version, right, name), {"linf_0.15": table}))
    image = np.random.default_rng(0).random((12, 1, 8, 8))
    found = {"linf_0.15": {"rows": np.arange(8, 20), "x": image, "x_adv": 1 - image, "prediction": np.ones(12, int)}}
    both = compare(*sides)
    return compare_page(both, pictures(both, found, found))


@pytest.fixture(scope="module")
def story() -> Story:
    """An untrained network, really measured on 40 digits."""
    splits = load("digits")
    x, y = splits["test"]
    threat, policy = ThreatModel(norm="linf", eps=0.05), Policy(floor=0.3)
    report, _ = evaluate(
        build("digits-cnn"), x[:40], y[:40], EvaluationConfig(threats=(threat,), suite="quick"), stage=EVILS[0]
    )
    chapter = Chapter(stage=EVILS[0], run_id="r", version=1, report=report, verdict=judge(report, policy))
    data = describe("digits", splits).model_copy(update={"name": EVIL, "labels": LABELS})
    return Story(name=EVIL, run_id="r", data=data, policy=policy, chapters=(chapter,), version=1)


@pytest.fixture(scope="module")
def pages(story) -> dict[str, str]:
    image, of = torch.rand(1, 8, 8), [record(1, 12, EVIL), record(2, 8, EVIL)]
    row = {"promise": EVIL, "remedy": EVIL, "success": False, "looked_at": 1, "broken": 1, "first": [EVIL]}
    return {
        "report": render_page(story, [Picture(stage=EVIL, threat="L", x=image, x_adv=1 - image, y=3, prediction=8)]),
        "posture": posture_page(History.of(EVIL, of, {EVIL: 1}, [1, 2]), [], [], now=NOW),
        "compare": compared(EVIL),
        "validation": render_validation(
            {"dataset": EVIL, "digest": EVIL, "samples": 1, "success": False, "checks": [row]}
        ),
    }


def test_what_a_class_is_called_stands_in_the_report_as_text(pages):
    page = Page(pages["report"])
    text = "".join(page.words)
    assert f"3 ({LABELS[3]})" in text  # of the class table and of the pictures
    assert f"8 ({LABELS[8]})" in text
    assert ("src", "x") not in page.attributes


KINDS = ("report", "posture", "compare", "validation")


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_allows_one_style_by_its_hash_and_nothing_else(pages, kind):
    page = Page(pages[kind])
    style = "".join(page.styles)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert page.policies == [
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    ]
    assert page.tags.count("style") == 1
    assert ("name", "referrer") in page.attributes
    assert ("content", "no-referrer") in page.attributes


@pytest.mark.parametrize("kind", KINDS)
def test_no_name_becomes_an_element_a_handler_or_an_address(pages, kind):
    page = Page(pages[kind])
    assert {name for name, _ in page.attributes if name.startswith("on") or name == "style"} == set()
    assert not {"script", "iframe", "object", "embed", "form", "base", "link", "foreignobject"} & set(page.tags)
    addresses = [value for name, value in page.attributes if name in ("href", "src", "xlink:href", "action")]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in addresses)
    text = "".join(page.words)
    assert all(evil in text for evil in EVILS)  # it is there, as text


@pytest.mark.parametrize("kind", ["report", "posture"])
def test_charts_keep_their_look_in_attributes(pages, kind):
    page = Page(pages[kind])
    assert page.tags.count("svg") >= 1
    names = {name for name, _ in page.attributes}
    assert {"fill", "stroke", "stroke-width", "font-size", "text-anchor"} <= names
    assert ("fill", "none") in page.attributes


def test_a_page_from_a_store_is_under_a_policy_before_anything_of_its_author(pages):
    evil = "<html><head><script>alert(1)</script></head></html>"
    page = Page(held(evil))
    assert page.tags[:2] == ["meta", "meta"]
    assert page.policies[0].startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline';")
    assert held(evil).endswith(evil)


@pytest.mark.parametrize("word", ["http-equiv", "HTTP-EQUIV", "Http-Equiv"])
def test_a_page_from_a_store_leads_nowhere(word):
    """No policy forbids a page to send its reader elsewhere."""
    page = Page(held(f'<meta {word}="refresh" content="0;url=https://evil.example/">'))
    assert [value for name, value in page.attributes if name == "http-equiv"] == ["Content-Security-Policy"]


def test_markdown_of_the_verdict_makes_no_link_no_image_and_no_element(story):
    evil = "[x](http://evil.example) ![x](http://evil.example/p.png) <img src=x> `x` | y\n# z"
    chapter = story.chapters[0].model_copy(update={"stage": evil})
    data = story.data.model_copy(update={"name": evil})
    text = render_markdown(story.model_copy(update={"name": evil, "chapters": (chapter,), "data": data}))
    assert not re.search(r"(?<!\\)!?\[[^\]\\]*\]\(", text)
    assert "<img" not in text
    assert "\n# z" not in text
