"""The posture page: every number stands on it, nothing is loaded, and no line joins what cannot be compared."""

import re
import subprocess
import sys
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import day, record, threat

from tasks.posture.charts import TOP, version_chart
from tasks.posture.coverage import coverage
from tasks.posture.findings import Cost, Finding, Observation, Reproducer, accept, advance
from tasks.posture.history import History
from tasks.posture.listing import by_age
from tasks.posture.page import headline, posture_page
from tasks.posture.paper import coded

NOW = datetime(2026, 4, 1, tzinfo=UTC)
ROOT = Path(__file__).parents[2]


def history(*records, name="digits", aliases=None, registered=None) -> History:
    known = sorted({r.version for r in records}) if registered is None else registered
    return History.of(name, records, aliases or {}, known)


def finding(at: str, **facts) -> Finding:
    of = {"name": "digits", "kind": "robustness", "threat": "linf_0.15", "label": "L-inf 0.15", "data": "digits"}
    of |= {"version": 1, "run_id": "r", "at": at, "fresh": "fail", "sound": True, "says": "31.0% is below 50%"}
    of |= {"cost": Cost(queries=1234, gradients=567, seconds=0.5), "attacks": ("apgd-ce",)}
    of |= {"reproducer": Reproducer(uri="runs:/r/x.npz", seed=0, command="redoubt findings digits --replay F-1")}
    found = advance(None, Observation(**of | facts))
    assert found
    return found


class Page(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags, self.links, self.words, self.lines = [], [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "srcset") and v]
        if tag == "polyline":
            self.lines.append(dict(attrs)["points"])

    def handle_data(self, data):
        self.words.append(data)


def test_every_number_of_the_main_group_stands_on_the_page():
    replay = threat(970).robust
    records = [record(1, 310, 480, verdict="fail"), record(2, threat(662, replay=replay), 700)]
    told = history(*records, aliases={"champion": 2})
    page = Page(posture_page(told, coverage=coverage(records), now=NOW))
    for of in records:
        for share in (of.clean, *(number.robust for number in of.threats)):
            assert f"{share.value:.1%} [{share.lo:.1%}, {share.hi:.1%}]" in page.text
        assert of.run_id in page.text
        assert of.weights_digest in page.text
    assert "replay 97.0%" in page.text
    for fact in (told.main.key, records[0].suite_digest, records[0].data_digest, "torch 2.13.0", "2 champion"):
        assert fact in page.text
    assert "480,000 forward and 240,000 backward passes (in samples) and 50 seconds" in page.text
    for _, says in told.told:
        assert says.replace("`", "") in page.text.replace("`", "")


def test_a_line_breaks_where_a_version_is_missing_or_void_and_joins_no_two_groups():
    other = {"suite": "deep", "suite_digest": "6" * 64}
    records = [record(v, 500 + v) for v in (1, 2, 4, 5, 6)] + [record(7, threat(900, sound=False)), record(8, 500)]
    records += [record(v, 300, **other, measured_at=day(40 + v), run_id=f"d{v}") for v in (5, 6, 7)]
    told = history(*records, registered=range(1, 9))
    page = Page(posture_page(told, now=NOW))
    assert [len(points.split()) for points in page.lines] == [3, 2, 3]  # deep's 5 to 7; standard's 1 to 2 and 4 to 6
    heights = [{point.split(",")[1] for point in points.split()} for points in page.lines]
    assert len(heights[0]) == 1
    assert not heights[0] & (heights[1] | heights[2])


def test_the_height_of_a_point_is_its_share():
    svg = version_chart(history(record(1, 0), record(2, 250), record(3, 1000)).main, 0, [1, 2, 3])
    heights = [float(y) for y in re.findall(r'class="dot" cx="[\d.]+" cy="([\d.]+)"', svg)]
    zero, top = heights[0], heights[2]
    assert top == TOP
    assert heights[1] == pytest.approx(zero - (zero - top) / 4, abs=0.1)


def test_a_void_number_is_hollow_has_no_line_and_is_told_as_void():
    records = [record(1, 600), record(2, threat(900, sound=False, alarms=("zero gradients",))), record(3, 610)]
    html = posture_page(history(*records, aliases={"champion": 2}), now=NOW)
    page = Page(html)
    assert html.count('class="hollow"') == 1
    assert "<s>90.0%</s>" in html  # in its card
    assert html.count('<s title="void">90.0%</s>') == 2  # among the void numbers, and among all
    assert page.lines == []
    assert "2 of 3 numbers of the main group are sound" in page.text
    assert "zero gradients" in page.text
    assert "Version 2 (champion) has no number that can be believed" in page.text


def test_the_headline_is_the_champion_s_and_then_the_newest_version_s():
    records = [record(1, 662), record(2, 310, verdict="fail")]
    first, second = headline(history(*records, aliases={"champion": 1}))
    assert (
        first
        == "Version 1 (champion) withstands the attacks on 66.2% of the samples under L-inf 0.15; its verdict is pass."
    )
    assert second.startswith("Version 2 withstands the attacks on 31.0%")
    assert headline(history(*records))[1] == "No version bears the alias champion."
    unmeasured = headline(history(*records, aliases={"champion": 3}, registered=[1, 2, 3]))
    assert "The champion, version 3, was not measured under this suite." in unmeasured
    assert "Nothing" in posture_page(history(registered=[1]), now=NOW)


def test_findings_are_listed_the_overdue_first_then_by_state_and_age():
    old = finding(day(1), says="the old one")
    young = finding(day(60), threat="l2_1", label="L2 1", says="the young one")
    middle = finding(day(50), threat="l2_2", label="L2 2", says="the middle one")
    known = accept(
        finding(day(2), threat="l0_8", label="L0 8"), owner="ada", expires="2026-09-01", reason="lab", at=day(3)
    )
    listed = by_age([young, known, middle, old], NOW, max_days=50)
    assert [one.finding.id for one in listed] == [old.id, middle.id, young.id, known.id]
    assert [(one.days, one.overdue, one.stands) for one in listed] == [
        *((89, True, True), (40, False, True), (30, False, True), (88, False, False))
    ]
    page = Page(posture_page(history(record(1, 310)), [young, known, middle, old], now=NOW, max_days=50))
    assert page.text.index("the old one") < page.text.index("the middle one") < page.text.index("the young one")
    for fact in (*old.ids, "1,234 queries, 567 gradients", old.reproducer.command, "accepted by ada until 2026-09-01"):
        assert fact in page.text
    assert "1 overdue, 1 accepted or mended" in page.text


def test_an_overdue_finding_stands_before_an_open_one_whatever_its_state():
    open_one, late = finding(day(60)), finding(day(1), threat="l2_1")
    seen = {"name": "digits", "kind": "robustness", "threat": "l2_1", "label": "L2 1", "data": "digits", "sound": True}
    half = Observation(**seen, version=2, run_id="r2", at=day(2), fresh="pass", replay="fail", says="half")
    late = advance(late, half)
    assert [one.finding.state for one in by_age([open_one, late], NOW, max_days=50)] == ["mitigated", "open"]
    assert [one.finding.state for one in by_age([open_one, late], NOW)] == ["open", "mitigated"]


def test_an_acceptance_that_has_ended_is_open_again():
    known = accept(finding(day(2)), owner="ada", expires="2026-02-01", reason="lab", at=day(3))
    (one,) = by_age([known], NOW, max_days=40)
    assert (one.finding.state, one.overdue) == ("open", True)


def test_what_was_not_tested_is_counted_and_named():
    rows = coverage([record(1, 600)])
    page = Page(posture_page(history(record(1, 600)), coverage=rows, now=NOW))
    missing = [row for row in rows if not row.tested]
    assert f"{len(rows) - len(missing)} of {len(rows)}" in page.text
    assert f"entries tested; {len(missing)} were not" in page.text
    for row in rows:
        assert row.entry.id in page.text
        assert (str(row.by) if row.by else row.why_not) in page.text


EVIL = "<script>alert(1)</script>\"'><img src=http://evil.example/x>`&{{ 7*7 }}"


def test_names_show_as_text_and_nothing_is_loaded():
    facts = {"data": EVIL, "suite": EVIL, "reason": EVIL, "code": EVIL, "environment": {EVIL: EVIL}}
    names = {"name": EVIL, "label": EVIL, "alarms": (EVIL,)}
    of = [
        record(version, threat(count, sound=version < 3, **names), name=EVIL, verdict=verdict, **facts)
        for version, count, verdict in ((1, 700, "pass"), (2, 500, EVIL), (3, 400, "fail"))
    ]
    told = history(*of, name=EVIL, aliases={EVIL: 2, "champion": 1}, registered=[1, 2, 3, 4])
    found = [finding(day(1), name="m", label=EVIL, says=EVIL, data=EVIL, subject="<b>")]
    html = posture_page(told, found, coverage(of), now=NOW, max_days=1)
    page = Page(html)
    assert "<script" not in html
    assert "<img" not in html
    assert "{{ 7*7 }}" in html
    assert page.links == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert "url(" not in html
    assert "@import" not in html
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in html


class Balanced(HTMLParser):
    def __init__(self):
        super().__init__()
        self.standing = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br"):
            self.standing.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.standing

    def handle_endtag(self, tag):
        assert self.standing.pop() == tag


def test_every_element_that_is_opened_is_closed():
    records = [record(v, threat(500 + v, sound=v % 7 > 0), 600) for v in range(1, 40)]
    records += [record(v, 400, suite_digest="6" * 64, measured_at=day(90 + v)) for v in (1, 2)]
    checked = Balanced()
    checked.feed(posture_page(history(*records), [finding(day(1))], coverage(records), now=NOW))
    assert checked.standing == []


def test_two_hundred_versions_stand_on_one_page_and_only_the_newest_outside_a_fold():
    records = [record(v, 400 + v, 500 + v, 600 - v) for v in range(1, 201)]
    html = posture_page(history(*records, aliases={"champion": 200}), coverage=coverage(records), now=NOW)
    page = Page(html)
    assert page.tags.count("svg") == 3
    assert all(of.run_id in page.text for of in records)
    assert "188 older versions" in page.text


def test_what_stands_between_backticks_is_code_and_a_lone_backtick_is_text():
    assert coded("do `a <b>` now") == "do <code>a &lt;b&gt;</code> now"
    assert coded("`a` and ` b") == "<code>a</code> and  b"
    assert "<code>" not in coded("one ` alone")


def test_the_pages_need_neither_torch_nor_mlflow_nor_a_plotting_library():
    code = (
        "import sys, tasks.posture.page, tasks.posture.compare, tasks.posture.terminal;"
        "from datetime import UTC, datetime; from tasks.posture.history import History;"
        "tasks.posture.page.posture_page(History.of('x', [], {}, []), now=datetime.now(UTC));"
        "print([m for m in ('torch', 'mlflow', 'prefect', 'pandas', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.strip() == "[]"
