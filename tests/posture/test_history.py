"""History: what may share a line, what is called a regression, and what a spreadsheet may not run."""

import csv
import io
import json
import re
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import day, record, threat

from tasks.errors import WrongInput
from tasks.posture.history import History
from tasks.posture.sentences import ranges

OTHER = {"suite": "deep", "suite_digest": "6" * 64}


def history(*records, aliases=None, registered=None) -> History:
    known = sorted({r.version for r in records}) if registered is None else registered
    return History.of("digits", records, aliases or {}, known)


def kinds(of: History) -> list[tuple[str, int, int]]:
    return [(change.kind, change.against, change.version) for change in of.changes]


@st.composite
def any_records(draw):
    facts = {
        "suite_digest": st.sampled_from("ab"),
        "data_digest": st.sampled_from("cd"),
        "seed": st.integers(0, 1),
        "warm": st.sampled_from(["", "w"]),
        "code": st.sampled_from(["x", "y"]),
        "verdict": st.sampled_from(["pass", "fail"]),
    }
    one = st.fixed_dictionaries(facts | {"day": st.integers(1, 9), "version": st.integers(1, 5)})
    made = []
    for number, of in enumerate(draw(st.lists(one, max_size=14))):
        of["measured_at"], sound = day(of.pop("day")), draw(st.booleans())
        threats = (threat(draw(st.integers(0, 1000)), sound=sound),)
        threats += (threat(draw(st.integers(0, 1000)), name="l2_1", label="L2 1"),) * draw(st.integers(0, 1))
        made.append(record(of.pop("version"), *threats, run_id=f"run-{number}", **of))
    return made


@settings(max_examples=70, deadline=None)
@given(any_records())
def test_no_series_and_no_step_ever_mixes_groups(records):
    told = history(*records, registered=[1, 2, 3, 4, 5])
    assert {group.key for group in told.groups} == {r.key for r in records}
    for group in told.groups:
        assert {r.key for r in group.records} == {group.key}
        assert all(a.differs_from(b) is None for a in group.records for b in group.records)
        assert list(group.versions) == sorted(set(group.versions))
        for place in range(len(group.labels)):
            shown = group.series(place, told.versions)
            of_group = {id(t) for r in group.records for t in r.threats}
            assert all(number is None or id(number) in of_group for number in shown)
    for change in told.changes:
        if change.kind in ("regression", "improvement", "within chance", "unsound", "sound again"):
            assert change.key == change.before_key
            assert change.against < change.version
        if change.kind == "measurement":
            assert change.against == change.version
        if change.kind == "not comparable":
            assert (change.before, change.after) == (None, None)
            assert change.key != change.before_key


@settings(max_examples=70, deadline=None)
@given(any_records(), st.randoms(use_true_random=False))
def test_the_order_in_which_records_are_given_changes_nothing(records, random):
    shuffled = list(records)
    random.shuffle(shuffled)
    assert history(*records).to_json() == history(*shuffled).to_json()


@settings(max_examples=100, deadline=None)
@given(any_records())
def test_the_main_group_holds_the_newest_measurement_and_each_version_its_newest(records):
    told = history(*records)
    if not records:
        assert told.main is None
        return
    newest = max(records, key=lambda r: (datetime.fromisoformat(r.measured_at), r.version, r.run_id))
    assert told.main.key == newest.key
    for group in told.groups:
        for kept in group.records:
            rivals = [r for r in records if r.key == group.key and r.version == kept.version]
            assert kept.measured_at == max(r.measured_at for r in rivals)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        pytest.param([record(1, 700), record(2, 600)], [("regression", 1, 2)], id="lower, same group"),
        pytest.param([record(1, 600), record(2, 700)], [("improvement", 1, 2)], id="higher, same group"),
        pytest.param(
            [record(1, 620), record(2, 600)], [("within chance", 1, 2)], id="each inside the other's interval"
        ),
        pytest.param(
            [record(1, 640), record(2, 600)], [("within chance", 1, 2)], id="lower, but the intervals overlap"
        ),
        pytest.param([record(1, 600), record(2, 640)], [("within chance", 1, 2)], id="higher, but they overlap"),
        pytest.param([record(1, 600), record(2, 600)], [], id="the same number"),
        pytest.param([record(1, 700), record(2, 300, **OTHER)], [("not comparable", 1, 2)], id="another suite"),
        pytest.param([record(1, 700), record(2, 300, seed=1)], [("not comparable", 1, 2)], id="another seed"),
        pytest.param(
            [record(1, 700), record(1, 300, **OTHER, measured_at=day(9))],
            [("measurement", 1, 1)],
            id="the same weights under a stronger suite",
        ),
        pytest.param(
            [record(1, 700), record(1, 300, **OTHER, measured_at=day(9), weights_digest="changed")],
            [("weights changed", 1, 1)],
            id="other weights under the same version",
        ),
        pytest.param(
            [record(1, 700), record(1, 650, code="new", measured_at=day(9))],
            [("measurement", 1, 1)],
            id="the same question asked twice",
        ),
        pytest.param(
            [record(1, 700), record(2, 690), record(1, 500, **OTHER, measured_at=day(8))],
            [("measurement", 1, 1), ("within chance", 1, 2)],
            id="an older group still tells of versions that no newer one holds both of",
        ),
        pytest.param(
            [
                *(record(1, 900), record(2, 700)),
                *(record(1, 400, **OTHER, measured_at=day(8)), record(2, 405, **OTHER, measured_at=day(9))),
            ],
            [("measurement", 1, 1), ("measurement", 2, 2), ("within chance", 1, 2)],
            id="what the newer group says of two versions stands",
        ),
        pytest.param(
            [record(1, 700), record(2, threat(100, sound=False)), record(3, 500)],
            [("unsound", 1, 2), ("regression", 1, 3), ("sound again", 2, 3)],
            id="a void number is held against none, and the line goes on behind it",
        ),
        pytest.param(
            [record(1, 700), record(2, 690, clean=500)],
            [("regression", 1, 2), ("within chance", 1, 2)],
            id="clean accuracy is a number too",
        ),
        pytest.param(
            [record(1, 700), record(2, 700, verdict="fail")], [("verdict changed", 1, 2)], id="another verdict"
        ),
    ],
)
def test_what_a_difference_is_called(records, expected):
    assert sorted(kinds(history(*records))) == sorted(expected)


def test_a_loss_in_small_steps_is_a_regression_against_where_it_began():
    counts = (700, 680, 660, 640, 620, 600)
    found = history(*(record(version, count) for version, count in enumerate(counts, 1)))
    moves = [change for change in found.changes if change.kind == "regression"]
    assert [(change.against, change.version) for change in moves] == [(1, 4)]
    assert moves[0].after.hi < moves[0].before.lo
    assert "small steps" in moves[0].says


def test_a_change_of_measurement_says_both_numbers_what_differs_and_that_the_model_is_the_same():
    found = history(record(3, 700), record(3, 300, **OTHER, measured_at=day(9)))
    (change,) = found.changes
    assert (change.before.value, change.after.value) == (0.7, 0.3)
    for said in ("70.0% [67.1%, 72.8%] became 30.0%", "same weights", "suite (standard 55555555, then deep 66666666)"):
        assert said in change.says


@pytest.mark.parametrize(
    ("facts", "command"),
    [
        (OTHER, "redoubt reattack digits --versions 1,2 --suite deep"),
        ({"data_digest": "new"}, "redoubt reattack digits --versions 1,2 --suite standard"),
        ({"seed": 4, "samples": 900}, "redoubt evaluate models:/digits/1 --samples 900 --seed 4"),
        ({"seeds": 3}, "redoubt evaluate models:/digits/1 --set evaluation.seeds=3"),
        ({"data": "mnist", "data_digest": "m"}, "redoubt evaluate models:/digits/1 --dataset mnist"),
    ],
)
def test_what_cannot_be_compared_comes_with_the_command_that_mends_it(facts, command):
    (change,) = history(record(1, 700), record(2, 300, **facts)).changes
    assert change.kind == "not comparable"
    assert change.says.endswith(f"Measure both alike: `{command}`")


def test_versions_that_the_main_group_lacks_are_named_with_the_command():
    found = history(record(1, 700), record(3, 700, **OTHER), registered=[1, 2, 3, 4])
    assert found.unmeasured == (1, 2, 4)
    assert found.command == "redoubt reattack digits --versions 1,2,4 --like 3"
    assert history(registered=[1, 2]).command == "redoubt evaluate models:/digits/2 --dataset D --eps 0.03"
    assert history(record(1, 700)).command == ""
    many = history(record(1, 700), registered=range(1, 20))
    assert many.command == "redoubt reattack digits --versions all --like 1"


def test_what_differs_within_a_group_is_noted():
    old, new = {"python": "3.11.9", "torch": "2.12.0"}, {"python": "3.11.9", "torch": "2.13.0"}
    found = history(
        record(1, 700, environment=old),
        record(2, 700, environment=new, code="new"),
        record(3, 700, environment=new, code="new"),
        record(3, 700, environment=new, code="new", run_id="again", measured_at=day(9)),
        registered=[2, 3],
    )
    torch = (
        "torch is not the same in all measurements, which may matter: 2.12.0 for version 1; 2.13.0 for versions 2, 3."
    )
    assert torch in found.notes
    assert any(note.startswith("Redoubt's own code is not the same") for note in found.notes)
    assert "No longer in the registry: version 1." in found.notes
    assert any("Measured more than once" in note and note.endswith("version 3.") for note in found.notes)
    assert not any("python" in note for note in found.notes)


def test_a_verdict_that_another_policy_gave_says_so():
    found = history(record(1, 700, policy="a" * 16), record(2, 700, verdict="fail", policy="b" * 16))
    (change,) = found.changes
    assert "under another policy (floor 0.5 in both, other numbers differ: aaaaaaaa, then bbbbbbbb)" in change.says
    strict, mild = threat(700, floor=0.4), threat(700, floor=0.01)
    found = history(record(1, strict, policy="a" * 16), record(2, mild, verdict="fail", policy="b" * 16))
    (change,) = found.changes
    assert "under another policy (floor 0.4, then floor 0.01)" in change.says
    (note,) = (note for note in found.notes if note.startswith("The verdicts' policy"))
    assert note.endswith("floor 0.4 (aaaaaaaa) for version 1; floor 0.01 (bbbbbbbb) for version 2.")


def test_a_champion_that_did_not_pass_or_was_never_measured_is_told():
    failed = history(record(1, 700), record(2, 700, verdict="fail"), aliases={"champion": 2})
    assert "Version 2 is champion, but its newest verdict is fail, not pass." in failed.notes
    again = record(2, 700, verdict="pass", measured_at=day(30), run_id="again")
    assert history(record(2, 700, verdict="fail"), again, aliases={"champion": 2}).notes[0].startswith("Measured more")
    never = history(record(1, 700), aliases={"champion": 2}, registered=[1, 2])
    assert "Version 2 is champion, but was never measured." in never.notes


def test_many_changes_of_a_kind_become_one_sentence():
    old = [record(version, 700) for version in range(1, 9)]
    new = [record(v, 500 + v, **OTHER, measured_at=day(20 + v), run_id=f"n{v}") for v in range(1, 9)]
    told = history(*old, *new).told
    assert [kind for kind, _ in told] == ["measurement", "within chance", "within chance"]
    assert "of 8 versions (1 to 8)" in told[0][1]
    assert "moved by -19.9 to -19.2 points" in told[0][1]
    assert "`redoubt compare digits 7 8`" in told[1][1]
    assert told[2][1] == "6 other moves between earlier versions stayed within chance."


@pytest.mark.parametrize("when", ["yesterday", "", "2026-13-01"])
def test_a_record_without_a_time_is_refused(when):
    with pytest.raises(WrongInput, match="does not say when it was measured"):
        history(record(1, 700, measured_at=when))


def test_a_record_of_another_model_is_refused():
    with pytest.raises(WrongInput, match="'mnist' stands among those of 'digits'"):
        history(record(1, 700, name="mnist"))


def test_times_of_any_zone_are_put_in_order():
    late = record(1, 600, measured_at="2026-01-01T23:00:00-05:00", run_id="late")
    early = record(1, 500, measured_at="2026-01-02T01:00:00Z", run_id="early")
    assert history(late, early).main.records[0].run_id == "late"


def test_rows_hold_every_fact_and_csv_gives_them_back():
    replay = threat(970).robust
    of = record(2, threat(612, replay=replay, alarms=("zero gradients", "curve"), sound=False), 700, evidence="e" * 64)
    found = history(record(1, 700, 800), of, aliases={"champion": 2, "previous": 2})
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [(row["version"], row["threat"]) for row in rows] == [
        *(("1", "linf_0.15"), ("1", "l2_1"), ("2", "linf_0.15"), ("2", "l2_1"))
    ]
    row, number = rows[2], of.threats[0]
    numbers = ("robust", number.robust), ("clean", of.clean), ("replay", replay)
    for name, share in numbers:
        assert [float(row[key]) for key in (name, f"{name}_lo", f"{name}_hi")] == [share.value, share.lo, share.hi]
    texts = ("suite", "suite_digest", "data_digest", "run_id", "measured_at", "code", "verdict", "reason", "key")
    assert all(row[key] == getattr(of, key) for key in (*texts, "weights_digest", "evidence", "split", "stage"))
    assert all(int(row[key]) == getattr(of, key) for key in ("seed", "seeds", "samples", "version"))
    assert row["aliases"] == "champion; previous"
    assert row["alarms"] == "zero gradients; curve"
    assert row["environment"] == "python 3.11.9; torch 2.13.0"
    assert (row["sound"], rows[3]["sound"], rows[0]["replay"]) == ("False", "True", "")
    assert row["threat_digest"] == number.digest
    assert json.loads(found.to_json())["rows"][2]["robust"] == number.robust.value


@pytest.mark.parametrize(
    "evil", ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n=1", "\uff1d1+1", "'=1", "a\n=1"]
)
def test_no_text_in_csv_begins_like_a_formula_and_none_is_lost(evil):
    found = history(record(1, 700, reason=evil, suite=evil), aliases={evil: 1})
    (row,) = csv.DictReader(io.StringIO(found.to_csv(), newline=""))
    for name in ("reason", "suite", "aliases"):
        assert not row[name].lstrip(" ").startswith(tuple("=+-@\uff1d\t\r\n"))
        assert row[name].removeprefix("'") == evil


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=12))
def test_any_text_comes_back_from_csv(text):
    (row,) = csv.DictReader(io.StringIO(history(record(1, 700, reason=text)).to_csv(), newline=""))
    assert row["reason"] in ([f"'{text}"] if text.startswith("'") else [text, f"'{text}"])


def test_the_json_names_the_main_group_the_groups_and_what_is_unmeasured():
    told = json.loads(history(record(1, 700), record(2, 300, **OTHER), registered=[1, 2, 3]).to_json())
    assert told["main"] == record(2, 300, **OTHER).key
    assert [group["versions"] for group in told["groups"]] == [[2], [1]]
    assert told["unmeasured"] == [1, 3]
    assert {row["key"] for row in told["rows"]} == {group["key"] for group in told["groups"]}
    assert [change["kind"] for change in told["changes"]] == ["not comparable"]


def test_ranges_read_as_people_write_them():
    assert ranges([5, 1, 2, 3, 8, 9]) == "1 to 3, 5, 8, 9"
    assert ranges([]) == ""


def test_every_change_is_a_sentence():
    found = history(record(1, 700), record(2, 500, verdict="fail"), record(3, threat(400, sound=False), **OTHER))
    for change in found.changes:
        assert re.match(r"[A-Z].*[.`]$", change.says)
