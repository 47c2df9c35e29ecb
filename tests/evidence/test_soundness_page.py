"""What the page, the terminal and the Markdown say of a number's soundness, on values made by hand."""

import base64
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from tasks.attacks import ThreatModel
from tasks.data import describe, load
from tasks.evidence import (
    Chapter,
    Picture,
    Samples,
    Story,
    headline,
    render_markdown,
    render_page,
    render_summary,
    to_picture,
)
from tasks.evidence.belief import MEANINGS, belief, explain, line
from tasks.metrics import EvaluationConfig, Share, Sign, Soundness, Step, ThreatReport, evaluate
from tasks.models import build
from tasks.verdicts import Policy, judge

N = 60
QUIET = Sign(
    name="flat curve",
    kind="convergence",
    state="ok",
    figure=0.31,
    threshold=0.02,
    says="Accuracy falls from 96% to 3% as eps doubles.",
)
STANDS = Sign(
    name="black-box beats white-box",
    kind="masking",
    state="alarm",
    first="alarm",
    figure=0.75,
    threshold=0.05,
    samples=tuple(range(3, 43)),
    says="Attacks without gradients won where gradients had failed.",
    answer="Straight-through gradients turned none of them.",
)
ANSWERED = Sign(
    name="no gradients",
    kind="failure",
    state="ok",
    first="alarm",
    figure=0.42,
    threshold=0.1,
    samples=(2, 4, 50),
    says="The margin had no slope on 3 of 60 samples.",
    answer="A longer search needs no slope.",
)
WHOLE = Sign(
    name="late flips",
    kind="measurement",
    state="ok",
    first="alarm",
    figure=0.9,
    threshold=0.03,
    says="Most samples fell late.",
)
UNRUN = Sign(name="transfer", kind="failure", state="not run", first="not run", says="Not run: no surrogate was given.")
BESIDE = Sign(
    name="lucky draw",
    kind="measurement",
    state="not applicable",
    first="not applicable",
    says="The model does not answer at random.",
)
STEP = Step(name="straight-through gradients (BPDA)", tried=57, fooled=33, passes=46_000, robust=0.25)


def sound(*signs: Sign, before: float | None = None) -> Soundness:
    return Soundness(signs=signs, steps=() if before is None else (STEP,), before=before, passes=18_240, share=0.084)


@pytest.fixture(scope="module")
def measured() -> Story:
    """One untrained network, really measured on 60 digits under two threat models, told as two chapters."""
    splits = load("digits")
    x, y = splits["test"]
    threats = (ThreatModel(norm="linf", eps=0.05), ThreatModel(norm="l2", eps=0.2))
    report, _ = evaluate(build("digits-cnn"), x[:N], y[:N], EvaluationConfig(threats=threats, suite="quick"))
    standing = base64.b64encode(np.packbits(np.arange(N) < 15).tobytes()).decode()
    plain = {"soundness": None, "robust": Share.of(15, N), "standing": standing, "problems": ()}
    report = report.model_copy(update={"threats": tuple(t.model_copy(update=plain) for t in report.threats)})
    policy = Policy(floor=0.1, clean_floor=0.0, min_samples=10)
    chapters = tuple(
        Chapter(stage=stage, report=report, verdict=judge(report, policy)) for stage in ("baseline", "hardened-1")
    )
    return Story(name="digits", run_id="r", data=describe("digits", splits), policy=policy, chapters=chapters)


def told(story: Story, *soundness: Soundness | None, stages: tuple[str, str] = ("baseline", "hardened-1")) -> Story:
    """The story with a soundness for each number: the first chapter's two, then the last one's."""
    chapters = []
    for i, chapter in enumerate(story.chapters):
        given = soundness[2 * i :]
        threats = tuple(
            t.model_copy(update={"soundness": s}) for t, s in zip(chapter.report.threats, given, strict=False)
        )
        report = chapter.report.model_copy(update={"stage": stages[i], "threats": threats})
        chapters.append(Chapter(stage=stages[i], report=report, verdict=judge(report, story.policy)))
    return story.model_copy(update={"chapters": tuple(chapters)})


def everything(story: Story, **more: tuple[str, str]) -> Story:
    """One of each: an alarm that stands, answered ones, none, and a number that was not checked."""
    return told(
        story,
        sound(QUIET, STANDS, ANSWERED, UNRUN, before=0.95),
        sound(QUIET, ANSWERED, WHOLE, before=0.95),
        sound(QUIET, QUIET.model_copy(update={"name": "labels do not fit", "kind": "measurement"}), BESIDE),
        None,
        **more,
    )


def samples(story: Story, places: tuple[int, ...] = (2, 3, 4, 7)) -> list[Samples]:
    """Rows that are not their places; of the pictures one was turned, one stands, one is wrong as it is, one a row."""
    found = []
    for chapter in story.chapters[:1]:
        for report in chapter.report.threats:
            image, pictures = torch.rand(1, 8, 8), {}
            for place in places:
                what = {"x": image, "x_adv": 1 - image, "y": 3, "prediction": 8}
                what |= {3: {"x_adv": None, "prediction": 3}, 4: {"x_adv": None}, 7: {"x": torch.rand(9)}}.get(
                    place, {}
                )
                what |= {"x_adv": None} if place == 7 else {}
                pictures[place] = Picture(stage=chapter.stage, threat=str(report.threat), **what)
            rows = range(1000, 1000 + N)
            found.append(Samples(stage=chapter.stage, threat=report.threat.name, rows=rows, pictures=pictures))
    return found


class Page(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags, self.ids, self.links, self.words = Counter(), Counter(), [], []
        self.feed(html)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        names = dict(attrs)
        self.words += [] if tag in ("a", "span", "strong") else [" "]
        self.tags[(tag, *sorted(names))] += 1
        self.ids.update([names["id"]] if "id" in names else [])
        self.links += [names["href"]] if "href" in names else []

    def handle_data(self, data):
        self.words.append(data)


def report_of(story: Story, soundness: Soundness | None, problems: tuple[str, ...] = ()) -> ThreatReport:
    return story.chapters[0].report.threats[0].model_copy(update={"soundness": soundness, "problems": problems})


FELL = "the number fell from 95.0% to 25.0%"


@pytest.mark.parametrize(
    ("soundness", "problems", "kind", "sentence"),
    [
        (None, (), "not checked", "Not checked."),
        (None, ("pgd: left the ball",), "void", "The number is void: pgd: left the ball. Nothing else was checked."),
        (
            sound(UNRUN, BESIDE),
            (),
            "not checked",
            "Not checked: none of the 2 signs was looked at.",
        ),
        (sound(QUIET), (), "no alarm", "1 of 1 sign was checked and none fired."),
        (sound(QUIET, QUIET, QUIET), (), "no alarm", "All 3 signs were checked and none fired."),
        (
            sound(QUIET, QUIET, UNRUN, UNRUN),
            (),
            "no alarm",
            "2 of 4 signs were checked and none fired. 2 signs were not run.",
        ),
        (sound(QUIET, ANSWERED), (), "answered", "1 of 2 signs fired; it was answered."),
        (
            sound(QUIET, ANSWERED, WHOLE, before=0.95),
            (),
            "answered",
            f"2 of 3 signs fired; both were answered: {FELL} and no longer depends on them.",
        ),
        (
            sound(ANSWERED, before=0.25),
            (),
            "answered",
            "1 of 1 sign fired; it was answered: the number stayed at 25.0% and no longer depends on it.",
        ),
        (
            sound(QUIET, WHOLE.model_copy(update={"state": "not applicable"}), before=0.95),
            (),
            "answered",
            f"1 of 2 signs fired; it stands no more: {FELL} and no longer depends on it. "
            "1 sign does not apply to this model.",
        ),
        (
            sound(QUIET, STANDS, ANSWERED, before=0.95),
            (),
            "void",
            f"The number is void: black-box beats white-box (40 samples). {MEANINGS['masking']} "
            f"2 of 3 signs fired and 1 stands unanswered; in the escalation {FELL}.",
        ),
        (
            sound(QUIET, QUIET),
            ("pgd: left the ball",),
            "void",
            "The number is void: pgd: left the ball. All 2 signs were checked and none fired.",
        ),
    ],
)
def test_one_sentence_says_what_fired_and_what_that_means(measured, soundness, problems, kind, sentence):
    report = report_of(measured, soundness, problems)
    assert belief(report) == kind
    assert explain(report) == sentence


def test_the_page_says_all_of_every_sign(measured):
    story = everything(measured)
    page = Page(render_page(story, samples=samples(story)))
    for chapter in story.chapters:
        for report in chapter.report.threats:
            assert explain(report) in page.text
            for sign in report.soundness.signs if report.soundness else ():
                assert {part for part in (sign.name, sign.says, sign.answer) if part not in page.text} == set()
                assert sign.figure is None or f"{sign.figure:.4g} alarm beyond {sign.threshold:.4g}" in page.text
    for sign in (STANDS, ANSWERED, WHOLE):
        assert MEANINGS[sign.kind] in page.text
    for fact in ("before it 95.0%", f"{STEP.name} 25.0% 33 57 46,000", "after it 25.0%"):
        assert fact in page.text
    assert "The checks cost 18,240 passes, 8.4% of the evaluation's; the escalation cost 46,000 more." in page.text
    assert "It concerns the whole measurement, not single samples." in page.text


def test_each_alarm_links_to_its_samples_and_every_link_arrives(measured):
    story = everything(measured)
    page = Page(render_page(story, samples=samples(story)))
    assert {link for link in page.links if not (link.startswith("#") and link[1:] in page.ids)} == set()
    assert max(page.ids.values()) == 1
    linked = {link for link in page.links if link.startswith("#sample-")}
    raised = {"linf_0.05": (1002, 1003, 1004, 1007), "l2_0.2": (1002, 1004)}  # 3 and 7 raised nothing under L2
    assert linked == {f"#sample-baseline-{name}-{row}" for name in raised for row in raised[name]}
    assert (
        "40 samples raised it; their rows in test: 1003, 1004, 1007 37 without a picture 1005, 1006, 1008" in page.text
    )
    for said in (
        "Row 1002 of test: class 3, taken for 8; largest change",
        "Row 1003 of test: class 3, and taken for it: nothing fooled the model here.",
        "Row 1004 of test: class 3, taken for 8 as it is.",
        "feature value",
    ):
        assert said in page.text


def test_without_pictures_the_places_stand_as_text(measured):
    page = Page(render_page(everything(measured)))
    assert not [link for link in page.links if link.startswith("#sample-")]
    assert "3 samples raised it; their places among those measured: 3 without a picture 2, 4, 50" in page.text


@pytest.mark.parametrize("stages", [("a b", "a-b"), ("<>", "&"), ("same", "same")])
def test_stages_of_like_names_share_no_anchor(measured, stages):
    story = everything(measured, stages=stages)
    page = Page(render_page(story, samples=samples(story)))
    assert max(page.ids.values()) == 1
    assert len([anchor for anchor in page.ids if anchor.startswith("soundness-")]) == 4
    assert all(re.fullmatch(r"[\w.-]+", anchor) for anchor in page.ids)
    assert {link for link in page.links if link[1:] not in page.ids} == set()


def test_names_that_are_html_make_no_element_and_no_attribute(measured):
    evil = '"><img src=x onerror=alert(1)><script>alert(1)</script>'

    def shown(what: str) -> Page:
        told_by = {"name": what, "says": what, "answer": what}
        signs = [sign.model_copy(update=told_by) for sign in (STANDS, ANSWERED, QUIET)]
        every = sound(*signs, before=0.9).model_copy(update={"steps": (STEP.model_copy(update={"name": what}),)})
        story = told(measured, every, every, every, every, stages=(what, f"{what}2"))
        return Page(render_page(story, samples=samples(story)))

    assert shown(evil).tags == shown("plain").tags
    story = told(measured, sound(STANDS.model_copy(update={"name": "![x](http://a)<b>"})), *[None] * 3)
    assert "![x](" not in render_markdown(story)
    assert "<b>" not in render_markdown(story)


def test_an_unanswered_alarm_stands_in_the_void_box_and_an_answered_one_does_not(measured):
    page = render_page(everything(measured))
    (box,) = re.findall(r'<div class="void">.*?</div>', page, re.DOTALL)
    assert "The number of baseline under L-inf 0.05 is void." in box
    assert f"{STANDS.name}: {STANDS.says}" in box
    assert ANSWERED.name not in box
    assert "is void" not in Page(render_page(told(measured, *[sound(QUIET, ANSWERED)] * 4))).text


def test_a_void_number_is_void_wherever_it_stands(measured):
    story = told(measured, *[sound(STANDS)] * 4)
    assert headline(story).endswith("but that number is void: black-box beats white-box (40 samples).")
    page = render_page(story)
    assert page.count('<s title="void">25.0%</s>') == 4
    assert page.count(">void</span>") == 4 + 2 + 4  # sections, cards, the table of every number
    assert "baseline, void" in page  # the chart
    assert render_markdown(story).count("(void)") == 4


@pytest.mark.parametrize("color", [True, False])
def test_the_terminal_names_each_doubt_in_a_line_and_is_silent_on_the_rest(measured, color):
    story = everything(measured)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", render_summary(story, width=80, color=color))
    assert max(map(len, plain.splitlines())) <= 80
    words = " ".join(plain.split())
    assert "baseline: robust accuracy under L-inf 0.05 is void: black-box beats white-box (40 samples)" in words
    assert f"baseline: robust accuracy under L2 0.2: 2 of 3 signs fired; both were answered: {FELL}" in words
    assert "hardened-1: robust accuracy under L2 0.2 was not checked" in words
    assert "none fired" not in words


def test_the_markdown_lists_every_number(measured):
    story = everything(measured)
    lines = render_markdown(story).splitlines()
    start = lines.index("## Can these numbers be believed?")
    assert lines[start + 2 : start + 6] == [
        f"- {line(chapter.stage, report)}" for chapter in story.chapters for report in chapter.report.threats
    ]
    assert sum("(void)" in row for row in lines if row.startswith("| ")) == 1


def test_every_sign_that_fired_gets_its_turn_in_the_pictures():
    assert to_picture(None, 12) == []
    assert to_picture(sound(QUIET.model_copy(update={"samples": (1,)})), 12) == []
    assert to_picture(sound(ANSWERED, QUIET, STANDS), 5) == [3, 2, 4, 5, 50]
    assert len(to_picture(sound(STANDS), 12)) == 12
