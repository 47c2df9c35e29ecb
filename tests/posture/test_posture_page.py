"""The posture page: every number stands on it, nothing is loaded, and no line joins what cannot be compared."""

import re
import subprocess
import sys
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import day, record, threat

from tasks.posture.charts import ACROSS, LEFT, TALL, TOP, version_chart
from tasks.posture.coverage import coverage
from tasks.posture.finding import Cost, Finding, Observation, Reproducer
from tasks.posture.findings import accept, advance
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
        self.tags, self.links, self.ids, self.words = [], [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "srcset") and v]
        self.ids += [v for k, v in attrs if k == "id"]

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


Point = tuple[float, float]


def shape(svg: str, name: str) -> list[list[Point]]:
    """The strokes and areas of that name as they are drawn: of each its points, x and y on the paper, none twice."""
    drawn = []
    for group in re.findall(rf'<g id="chart-\w+-\d-{name}">\s*((?:<path d="[^"]*"[^>]*>\s*)+)', svg):
        for stroke in re.findall(r"M [^M\"]*", group):
            points = re.findall(r"[ML] ([\d.]+) ([\d.]+)", stroke)
            drawn.append([(float(x), float(y)) for x, y in dict.fromkeys(points)])
    return drawn


def lines(svg: str) -> list[list[Point]]:
    """What joins two versions or more."""
    return [stroke for stroke in shape(svg, "sound") if len(stroke) > 1]


def marks(svg: str) -> list[tuple[float, str]]:
    """Of each mark its height on the paper and what it says."""
    found = re.findall(r'<use [^>]*?y="([\d.]+)"[^>]*><title>([^<]*)</title></use>', svg)
    return [(float(y), said) for y, said in found]


def height(share: float) -> float:
    return TOP + (1 - share) * TALL


def test_a_line_breaks_where_a_version_is_missing_or_void_and_joins_no_two_groups():
    other = {"suite": "deep", "suite_digest": "6" * 64}
    records = [record(v, 500 + v) for v in (1, 2, 4, 5, 6)] + [record(7, threat(900, sound=False)), record(8, 500)]
    records += [record(v, 300, **other, measured_at=day(40 + v), run_id=f"d{v}") for v in (5, 6, 7)]
    told = history(*records, registered=range(1, 9))
    html = posture_page(told, now=NOW)
    assert html.count("<svg") == 2
    deep, *standard = lines(html)
    assert [y for _, y in deep] == pytest.approx([height(0.3)] * 3)  # 5 to 7
    assert [[y for _, y in line] for line in standard] == [
        pytest.approx([height(0.501), height(0.502)], abs=1e-4),
        pytest.approx([height(0.504), height(0.505), height(0.506)], abs=1e-4),
    ]


def test_the_height_of_a_mark_is_the_share_that_it_tells():
    counts = [0, 250, 613, 1000, *range(100, 136)]
    for versions in (range(1, 5), range(1, 41), [3, 4, 9, 17]):
        records = [record(v, threat(n, sound=n != 250)) for v, n in zip(versions, counts, strict=False)]
        found = marks(version_chart(history(*records).main, 0, list(versions)))
        assert len(found) == len(records)
        told = {said.removesuffix(", void"): y for y, said in found}
        for of in records:
            share = of.threats[0].robust
            said = f"version {of.version}: {share.value:.1%} [{share.lo:.1%}, {share.hi:.1%}]"
            assert told[said] == pytest.approx(height(share.value), abs=1e-4)
        assert [said[:9] for _, said in found if said.endswith("void")] == [f"version {versions[1]}"]


def test_the_band_is_the_interval_and_a_version_alone_has_a_bar():
    records = [record(v, 100 * v) for v in (1, 2, 4)]
    svg = version_chart(history(*records, registered=[1, 2, 3, 4]).main, 0, [1, 2, 3, 4])
    one, two, four = (of.threats[0].robust for of in records)
    (band,) = shape(svg, "band")
    edges = {height(share) for of in (one, two) for share in (of.lo, of.hi)}
    assert sorted({y for _, y in band}) == pytest.approx(sorted(edges), abs=1e-4)
    ((_, bottom), (_, top)) = shape(svg, "alone")[0]
    assert (bottom, top) == pytest.approx((height(four.lo), height(four.hi)), abs=1e-4)


def test_the_floor_steps_where_the_policy_moved_it():
    floors = {1: 0.5, 2: 0.5, 3: 0.7, 4: 0.7}
    records = [record(v, threat(600, floor=floor)) for v, floor in floors.items()]
    (floor,) = shape(version_chart(history(*records).main, 0, list(floors)), "floor")
    assert [y for _, y in floor] == pytest.approx([height(0.5)] * 2 + [height(0.7)] * 2, abs=1e-4)
    assert [x for x, _ in floor] == pytest.approx([LEFT, LEFT + ACROSS / 2, LEFT + ACROSS / 2, LEFT + ACROSS])


@pytest.mark.parametrize("versions", [[1], [3, 17], [7, 203], [1, 2, 3], list(range(1, 201)), list(range(996, 1010))])
def test_a_few_versions_are_named_at_their_place(versions):
    svg = version_chart(history(*(record(v, 600) for v in versions)).main, 0, versions)
    named = re.findall(r'<text [^>]* x="([\d.]+)"[^>]*>(\d+)</text>', svg)
    assert 1 <= len(named) <= 9
    first, span = versions[0] - 0.5, versions[-1] - versions[0] + 1
    for x, version in named:
        assert float(x) == pytest.approx(LEFT + (int(version) - first) / span * ACROSS, abs=1e-4)


def test_a_void_number_is_hollow_has_no_line_and_is_told_as_void():
    records = [record(1, 600), record(2, threat(900, sound=False, alarms=("zero gradients",))), record(3, 610)]
    html = posture_page(history(*records, aliases={"champion": 2}), now=NOW)
    page = Page(html)
    hollow = html[html.index('-void">') :]
    assert len(marks(hollow)) == 1
    assert 'fill-opacity="0"' in hollow[: hollow.index("</title>")]
    assert "fill-opacity: 0;" not in html[: html.index('-void">')]
    assert lines(html) == []
    assert shape(html, "band") == []
    assert "<s>90.0%</s>" in html  # in its card
    assert html.count('<s title="void">90.0%</s>') == 2  # among the void numbers, and among all
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
    assert "The champion, version 3, was not measured in this way." in unmeasured
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
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert "url(" not in html
    assert "@import" not in html


def test_charts_share_no_id_load_nothing_and_are_the_same_every_time():
    records = [record(v, threat(500 + v, sound=v != 2), 400) for v in (1, 2, 3)]
    records += [record(v, 400, 300, suite_digest="6" * 64, measured_at=day(9 + v)) for v in (1, 2, 3)]
    html, again = (posture_page(history(*records, aliases={"champion": 2}), now=NOW) for _ in range(2))
    page = Page(html)
    assert page.tags.count("svg") == 4
    assert len(set(page.ids)) == len(page.ids)
    assert page.links
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert "://" not in html
    assert "#010203" not in html  # the ink is the page's own
    assert html == again


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
    assert [len(line) for line in lines(html)] == [200] * 3
    assert all(of.run_id in page.text for of in records)
    assert "188 older versions" in page.text


def test_what_stands_between_backticks_is_code_and_a_lone_backtick_is_text():
    assert coded("do `a <b>` now") == "do <code>a &lt;b&gt;</code> now"
    assert coded("`a` and ` b") == "<code>a</code> and  b"
    assert "<code>" not in coded("one ` alone")


def test_the_pages_need_neither_torch_nor_mlflow_and_load_matplotlib_for_a_chart_only():
    code = (
        "import sys; sys.path.append('tests/posture');"
        "import tasks.posture.page, tasks.posture.compare, tasks.posture.terminal;"
        "from datetime import UTC, datetime; from tasks.posture.history import History; from made_up import record;"
        "none, one = History.of('digits', [], {}, []), History.of('digits', [record(1, 600)], {}, [1]);"
        "loaded = lambda: [m for m in NAMES if m in sys.modules];"
        "draw = lambda told: tasks.posture.page.posture_page(told, now=datetime.now(UTC));"
        "draw(none); print(loaded()); draw(one); print(loaded())"
    )
    names = ("torch", "mlflow", "prefect", "pandas", "sklearn", "matplotlib", "matplotlib.pyplot")
    code = code.replace("NAMES", str(names))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.split("\n")[:2] == ["[]", "['matplotlib']"]
