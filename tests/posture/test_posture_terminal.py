"""The terminal's pages: they fit, they say what they must, and no name moves the cursor."""

import re
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import day, record, table, threat
from rich.cells import cell_len

from tasks.errors import WrongInput
from tasks.posture.compare import Measured, compare
from tasks.posture.console import BLOCKS, plain, sparkline
from tasks.posture.finding import Cost, Observation, Reproducer
from tasks.posture.findings import accept, advance
from tasks.posture.history import History
from tasks.posture.terminal import render_compare, render_explain, render_findings, render_history

NOW = datetime(2026, 4, 1, tzinfo=UTC)
WIDTHS = [40, 60, 80, 120, 200]


def history(*records, name="digits", aliases=None, registered=None) -> History:
    known = sorted({r.version for r in records}) if registered is None else registered
    return History.of(name, records, aliases or {}, known)


def many(count: int) -> History:
    numbers = [(300 + v, 900 - v, 500 + v % 30) for v in range(1, count + 1)]
    records = [record(v, *of, run_id=f"r{v}") for v, of in enumerate(numbers, 1) if v % 17]
    return history(*records, registered=range(1, count + 1), aliases={"champion": count, "a-long-alias" * 4: 3})


def test_a_sparkline_has_a_block_for_each_eighth_a_gap_and_an_x():
    eighths = [(i + 0.5) / 8 for i in range(8)]
    assert sparkline(eighths, [False] * 8) == BLOCKS == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0.1249, 0.125, 0.5, 0.9999, 1], [False] * 6) == "▁▁▂▅██"
    assert sparkline([0.5, None, 0.5, None], [False, False, True, False]) == "▅ x "


@given(st.lists(st.tuples(st.one_of(st.none(), st.floats(0, 1)), st.booleans())))
def test_a_sparkline_has_one_character_a_version_and_never_falls_where_the_value_rises(pairs):
    values, void = [v for v, _ in pairs], [hollow for _, hollow in pairs]
    line = sparkline(values, void)
    assert len(line) == len(pairs)
    shown = sorted(
        (v, BLOCKS.index(c)) for (v, hollow), c in zip(pairs, line, strict=True) if v is not None and not hollow
    )
    assert [block for _, block in shown] == sorted(block for _, block in shown)


def test_versions_are_listed_the_newest_last_with_their_numbers_and_a_line_of_blocks():
    told = history(
        record(1, 310, verdict="fail"),
        record(2, threat(662, replay=threat(970).robust)),
        record(3, threat(930, sound=False), verdict="cannot tell"),
        aliases={"champion": 2},
        registered=[1, 2, 3, 4],
    )
    lines = render_history(told, width=110, color=False).splitlines()
    assert any(line == "L-inf 0.15  ▃▆x   1 to 4" for line in lines)
    of = {line.split()[0]: line for line in lines if line[:1].isdigit()}
    assert list(of) == ["1", "2", "3", "4"]
    shown = {
        "1": ("31.0% [28.2, 33.9] ██░░░░░░", "fail"),
        "2": ("2 champion", "66.2% [63.2, 69.1] █████░░░ replay 97%", "pass"),
        "3": ("93.0% void", "cannot tell"),
        "4": ("not measured",),
    }
    assert all(said in of[version] for version, facts in shown.items() for said in facts)
    assert "Versions not measured in this way: 4. Measure: redoubt reattack digits --versions 4 --like 3" in lines


def test_other_groups_have_a_line_of_their_own_and_no_place_in_the_blocks():
    told = history(record(1, 900), record(2, 100, suite="deep", suite_digest="6" * 64))
    text = render_history(told, width=110, color=False)
    assert "L-inf 0.15   ▁  1 to 2" in text
    assert "1 version (1) measured with suite standard (55555555)" in text
    assert "never drawn in the same line" in text.replace("\n", " ")
    assert "90.0%" not in text


@pytest.mark.parametrize(("width", "last"), [*((width, 30) for width in WIDTHS), (60, 1), (60, 500), (120, 500)])
def test_two_hundred_versions_fit_and_the_hidden_ones_are_counted(width, last):
    text = render_history(many(200), width=width, color=False, last=last)
    assert max(map(cell_len, text.splitlines())) <= width
    assert (f"{200 - last} earlier versions hidden; --last 200 shows all." in " ".join(text.split())) == (last < 200)
    rows = [int(row) for row in re.findall(r"^(\d+)\b.*(?:pass|not measured)$", text, flags=re.MULTILINE)]
    assert rows == list(range(1, 201))[-last:]
    assert all(said in text for said in ("50.0% [46.9, 53.1]", "70.0% [67.1, 72.8]", "52.0% [48.9, 55.1]"))  # of 200


def test_colour_changes_no_word():
    told = many(12)
    coloured = render_history(told, width=100, color=True)
    bare = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", coloured).splitlines()]
    assert bare == render_history(told, width=100, color=False).splitlines()
    assert "\x1b[" in coloured


def test_a_model_without_measurements_says_what_measures_it():
    text = render_history(history(registered=[1, 2]), width=100, color=False)
    assert "Nothing was measured yet." in text
    assert "redoubt evaluate models:/digits/2 --dataset D --eps 0.03" in text


EVIL = "\x1b[31m\x07\u202e[bold]\r\nname"


def test_no_name_moves_the_cursor_or_is_taken_for_markup():
    assert plain(EVIL) == "\ufffd[31m\ufffd\ufffd[bold]\ufffd\ufffdname"
    of = [
        record(v, threat(600, label=EVIL), name=EVIL, data=EVIL, verdict=EVIL, reason=EVIL, suite=EVIL) for v in (1, 3)
    ]
    told = History.of(EVIL, of, {EVIL: 1}, [1, 2, 3])
    found = {"outcome": "fail", "checks": [{"name": EVIL, "outcome": "fail", "reason": EVIL}]}
    texts = [render_history(told, color=False), render_explain(found, {EVIL: EVIL}, of[0], color=False)]
    for text in texts:
        assert not {"\x1b", "\x07", "\u202e", "\r"} & set(text)
        assert "[bold]" in text


def pair(y: bool) -> tuple[Measured, Measured]:
    made = []
    for version, stands in ((2, [1] * 80 + [0] * 20), (3, [1] * 50 + [0] * 40 + [1] * 10)):
        number = threat(sum(stands), n=100)
        columns = table(stands, y=np.arange(100) % 2 if y else None)
        made.append(Measured(record(version, number, n=100, clean=100), {number.name: columns}))
    return made[0], made[1]


@pytest.mark.parametrize("width", WIDTHS[1:])
def test_a_comparison_tells_what_was_lost_and_gained_and_fits(width):
    text = render_compare(compare(*pair(True)), width=width, color=False)
    assert max(map(cell_len, text.splitlines())) <= width
    for said in (
        "L-inf 0.15  lower",
        "80.0% [71.1, 86.7]",
        "30 regressed: rows 150, 153",
        "10 repaired: rows 270, 273",
    ):
        assert said in text
    assert "loss +20.0%" in text
    assert "do not tell the classes" in " ".join(
        render_compare(compare(*pair(False)), width=width, color=False).split()
    )


def test_findings_tell_state_age_owner_cost_and_how_to_see_them_again():
    of = {"name": "digits", "kind": "robustness", "data": "digits", "version": 1, "run_id": "r", "fresh": "fail"}
    of |= {"sound": True, "says": "31.0% is below 50%", "cost": Cost(queries=1234, gradients=567, seconds=0.5)}
    of |= {"reproducer": Reproducer(uri="runs:/r/x.npz", seed=0, command="redoubt findings digits --replay F-1")}
    open_one = advance(None, Observation(**of, at=day(1), threat="linf_0.15", label="L-inf 0.15"))
    known = advance(None, Observation(**of, at=day(2), threat="l2_1", label="L2 1"))
    known = accept(known, owner="ada", expires="2026-09-01", reason="lab only", at=day(3))
    text = render_findings([known, open_one], NOW, max_days=30, width=80, color=False)
    assert "2 findings, 1 of them open, 1 overdue." in text
    assert f"open OVERDUE  89 days  {open_one.id}  L-inf 0.15" in text
    assert "1,234 queries, 567 gradients" in " ".join(text.split())
    assert "see it again: redoubt findings digits --replay F-1" in text
    assert "accepted by ada until 2026-09-01: lab only" in text
    assert text.index("open OVERDUE") < text.index(f"accepted  88 days  {known.id}")
    assert "OVERDUE" not in render_findings([open_one], NOW, color=False)
    assert render_findings([], NOW, color=False).strip() == "No findings."


CHECKS = [
    {"name": "sample size", "outcome": "pass", "reason": "1000 samples were measured, 100 are needed"},
    {"name": "soundness under L2 1", "outcome": "cannot tell", "reason": "gradients are zero"},
    {"name": "robust accuracy under L-inf 0.15", "outcome": "fail", "reason": "robust accuracy is below the floor"},
    {"name": "champion, clean accuracy", "outcome": "fail", "reason": "3 % were lost"},
]


def test_what_decided_stands_first_and_what_to_do_next_is_said():
    verdict = {"outcome": "fail", "checks": CHECKS}
    text = render_explain(verdict, {"floor": 0.5, "floors": {}}, record(3, 600), width=90, color=False)
    places = [
        text.index(said) for said in ("is below the floor", "3 % were lost", "gradients are zero", "1000 samples")
    ]
    assert places == sorted(places)
    assert "The verdict on version 3 of digits: fail" in text
    for said in (
        "`redoubt compare digits champion 3`",
        "Harden the model",
        "evaluation.suite=deep",
        "The policy: floor 0.5.",
    ):
        assert said in text
    assert text.index("Harden the model") < text.index("evaluation.suite=deep")
    undecided = {"outcome": "cannot tell", "checks": CHECKS[:2]}
    text = render_explain(undecided, {}, None, width=90, color=False)
    assert text.index("gradients are zero") < text.index("1000 samples")
    assert "What to do next" not in render_explain({"outcome": "pass", "checks": CHECKS[:1]}, {}, None, color=False)


@pytest.mark.parametrize(
    "verdict", [{}, {"outcome": "pass"}, {"outcome": "pass", "checks": []}, {"outcome": "good", "checks": CHECKS}]
)
def test_what_is_no_verdict_is_not_explained(verdict):
    with pytest.raises(WrongInput, match="this is no verdict"):
        render_explain(verdict, {}, None)
