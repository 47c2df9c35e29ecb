"""The ledger of findings: every transition as a table, and what no sequence of observations may do."""

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.errors import WrongInput
from tasks.posture.catalogue import ids_of
from tasks.posture.finding import Cost, Finding, Observation, Reproducer
from tasks.posture.findings import (
    accept,
    advance,
    age_days,
    at,
    crowned,
    ledger_metrics,
    overdue,
    patch_latency_days,
    reopen,
)

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
STORED = Reproducer(uri="runs:/0f3c/findings/linf_0.15.npz", seed=7, command="redoubt findings digits --replay F-1")
COST = Cost(queries=120.5, gradients=60.25, seconds=0.5)


def day(number: float) -> str:
    return (START + timedelta(days=number)).isoformat()


def seen(version: int, fresh: str = "fail", replay: str = "not run", **other) -> Observation:
    facts = {
        "name": "digits",
        "kind": "robustness",
        "threat": "linf_0.15",
        "label": "L-inf 0.15",
        "data": "digits",
        "run_id": "0f3c",
        "at": day(min(version, 900)),
        "sound": True,
        "says": f"61 of 100 samples of version {version} were fooled.",
        "attacks": ("margin", "square"),
        "reproducer": STORED if "fail" in (fresh, replay) else None,
    }
    return Observation(version=version, fresh=fresh, replay=replay, **(facts | other))


def after(*observations: Observation) -> Finding:
    finding = None
    for observation in observations:
        finding = advance(finding, observation)
    assert finding is not None
    return finding


# Where a finding stands: the newest version observed is 3.
FOUND = seen(2)
STANDS = {
    "open": after(FOUND, seen(3, "fail", "fail")),
    "mitigated, fresh fails": after(FOUND, seen(3, "fail", "pass")),
    "mitigated, replay fails": after(FOUND, seen(3, "pass", "fail")),
    "mitigated, no replay": after(FOUND, seen(3, "pass", "not run")),
    "verified": after(FOUND, seen(3, "pass", "pass")),
    "regressed": after(seen(1), seen(2, "pass", "pass"), seen(3, "fail", "fail")),
    "accepted": accept(after(FOUND, seen(3)), owner="ann", expires="2026-06-30", reason="offline only", at=day(3)),
}
FRESH, REPLAY = ("pass", "fail", "cannot tell"), ("pass", "fail", "not run")
COLUMNS = [(fresh, replay) for fresh in FRESH for replay in REPLAY]
AFTER = {  # fresh pass: replay pass, fail, not run | fresh fail: pass, fail, not run | fresh cannot tell: the same
    "open": "verified mitigated mitigated | mitigated open open | mitigated open open",
    "mitigated, fresh fails": "verified regressed mitigated | mitigated regressed mitigated "
    "| mitigated regressed mitigated",
    "mitigated, replay fails": "verified mitigated mitigated | regressed regressed regressed "
    "| mitigated mitigated mitigated",
    "mitigated, no replay": "verified regressed mitigated | regressed regressed regressed "
    "| mitigated regressed mitigated",
    "verified": "verified regressed verified | regressed regressed regressed | verified regressed verified",
    "regressed": "verified regressed regressed | regressed regressed regressed | regressed regressed regressed",
    "accepted": "accepted accepted accepted | accepted accepted accepted | accepted accepted accepted",
}
TABLE = [
    (stands, fresh, replay, expected)
    for stands, row in AFTER.items()
    for (fresh, replay), expected in zip(COLUMNS, row.replace("|", "").split(), strict=True)
]


@pytest.mark.parametrize("stands", STANDS)
def test_each_finding_of_the_table_stands_where_its_name_says(stands):
    finding = STANDS[stands]
    assert finding.state == stands.partition(",")[0]
    assert finding.last_version == 3


@pytest.mark.parametrize("version", [3, 4], ids=["same version", "newer version"])
@pytest.mark.parametrize(("stands", "fresh", "replay", "expected"), TABLE)
def test_the_newest_version_moves_a_finding_as_the_table_says(stands, fresh, replay, expected, version):
    finding = advance(STANDS[stands], seen(version, fresh, replay, at=day(9)))
    assert finding.state == expected
    assert finding.last_version == version
    assert finding.seen_at == day(9)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("stands", "fresh", "replay", "expected"), TABLE)
def test_an_older_version_changes_no_state(stands, fresh, replay, expected, version):
    before = STANDS[stands]
    finding = advance(before, seen(version, fresh, replay, at=day(9)))
    assert finding.state == before.state
    assert (finding.last_version, finding.verified_version) == (3, before.verified_version)
    assert (finding.says, finding.fresh, finding.replay) == (before.says, before.fresh, before.replay)


@pytest.mark.parametrize(("stands", "fresh", "replay", "expected"), [row for row in TABLE if row[1] == "cannot tell"])
def test_a_pass_that_may_not_be_believed_tells_nothing(stands, fresh, replay, expected):
    assert advance(STANDS[stands], seen(4, "pass", replay, sound=False)).state == expected


@pytest.mark.parametrize("replay", REPLAY)
@pytest.mark.parametrize("fresh", FRESH)
@pytest.mark.parametrize("sound", [True, False])
def test_a_finding_begins_with_a_failure_and_with_nothing_else(fresh, replay, sound):
    finding = advance(None, seen(2, fresh, replay, sound=sound))
    if "fail" not in (fresh, replay):
        assert finding is None
        return
    assert finding.state == "open"
    assert (finding.first_version, finding.last_version, finding.found_at) == (2, 2, day(2))
    assert [line.state for line in finding.history] == ["open"]


@pytest.mark.parametrize("stands", ["open", "mitigated, no replay", "regressed"])
def test_a_replay_that_did_not_run_closes_only_what_has_no_examples(stands):
    with_examples = STANDS[stands]
    without = with_examples.model_copy(update={"reproducer": None})
    assert advance(with_examples, seen(4, "pass", "not run")).state != "verified"
    assert advance(without, seen(4, "pass", "not run")).state == "verified"
    assert advance(without, seen(4, "pass", "fail")).state != "verified"
    assert advance(without, seen(4, "cannot tell", "not run")).state != "verified"


def test_a_pass_of_an_old_version_leaves_open_what_newer_ones_have():
    finding = after(seen(1), seen(2), seen(1, "pass", "pass", at=day(3)))
    assert (finding.state, finding.first_version, finding.last_version) == ("open", 1, 2)


def test_an_old_version_found_weak_moves_the_first_version_back_and_nothing_else():
    verified = after(seen(3), seen(4, "pass", "pass"))
    finding = advance(verified, seen(1, at=day(9)))
    assert (finding.state, finding.first_version, finding.verified_version) == ("verified", 1, 4)
    assert finding.found_at == day(3)
    assert finding.history[-1].version == 1
    assert advance(finding, seen(2, at=day(10))).first_version == 1
    assert advance(verified, seen(1, "pass", "pass", at=day(9))).first_version == 3


def test_verification_is_noted_kept_and_taken_back():
    verified = after(seen(1), seen(2, "pass", "pass"), seen(3, "pass", "pass"))
    assert (verified.verified_version, verified.verified_at) == (2, day(2))
    regressed = advance(crowned(verified, 3, day(3)), seen(3, "pass", "fail", at=day(4)))
    assert regressed.state == "regressed"
    assert (regressed.verified_version, regressed.verified_at, regressed.closed_at) == (None, None, None)
    again = advance(regressed, seen(5, "pass", "pass"))
    assert (again.state, again.verified_version) == ("verified", 5)
    assert [line.state for line in again.history] == ["open", "verified", "verified", "regressed", "verified"]


def test_a_failure_describes_the_weakness_anew_and_a_pass_does_not():
    other = STORED.model_copy(update={"seed": 8})
    finding = after(seen(1, cost=COST), seen(2, attacks=("transfer",), reproducer=other), seen(3, "pass", "pass"))
    assert finding.says == "61 of 100 samples of version 2 were fooled."
    assert finding.cost == COST  # the second gave none
    assert finding.reproducer == other
    assert advance(finding, seen(4, reproducer=None)).reproducer == other
    assert finding.ids == ids_of("linf", ["margin", "square", "transfer"])
    assert "version 3" in finding.history[-1].why


def test_the_same_weakness_has_the_same_id_and_another_one_another():
    one = seen(1)
    assert one.id == seen(9, "pass", "pass", says="otherwise", label="x", run_id="y").id
    others = [
        seen(1, **{field: value})
        for field, value in {
            "name": "mnist",
            "kind": "pair",
            "threat": "l2_0.5",
            "subject": "3 taken for 8",
            "data": "mnist",
        }.items()
    ]
    assert len({one.id, *(other.id for other in others)}) == 6
    with pytest.raises(WrongInput, match=one.id):
        advance(after(one), others[0])


# --- what no sequence of observations may do


def texts(most: int):
    return st.text(st.characters(codec="utf-8"), min_size=1, max_size=most)


ANSWERS = {
    "version": st.integers(1, 5),
    "fresh": st.sampled_from(FRESH),
    "replay": st.sampled_from(REPLAY),
    "sound": st.booleans(),
    "reproducer": st.sampled_from([None, STORED]),
}
SEQUENCES = st.lists(st.builds(seen, **ANSWERS, at=st.integers(0, 400).map(day)), min_size=1, max_size=14)


@settings(deadline=None, max_examples=150)
@given(SEQUENCES, st.booleans())
def test_nothing_is_verified_but_by_both_checks_on_the_newest_version(observations, accepted):
    finding, newest = None, 0
    for observation in observations:
        before, finding = finding, advance(finding, observation)
        if finding is None:
            continue
        newest = max(newest, observation.version)
        assert finding.last_version == newest
        became = finding.state != (before.state if before else "")
        if became and finding.state == "verified":
            assert observation.fresh == "pass"
            assert observation.sound
            assert observation.replay == "pass" or (observation.replay == "not run" and before.reproducer is None)
            assert observation.version == newest == finding.verified_version
        if became and finding.state == "regressed":
            assert "fail" in (observation.fresh, observation.replay)
            assert observation.version >= (before.verified_version or before.last_version)
        if accepted and before is None:
            finding = accept(finding, owner="ann", expires="2026-12-31", reason="offline", at=day(0))


@settings(deadline=None, max_examples=150)
@given(SEQUENCES, st.booleans())
def test_an_observation_twice_is_as_good_as_once(observations, accepted):
    finding = None
    for observation in observations:
        finding = advance(finding, observation)
        assert advance(finding, observation) == finding
        if finding and finding.state == "accepted":
            continue
        later = advance(finding, observation.model_copy(update={"at": day(500), "run_id": "later"}))
        assert later is None or later.model_copy(update={"seen_at": finding.seen_at}) == finding
        if accepted and finding and finding.state == "open":
            finding = accept(finding, owner="ann", expires="2026-12-31", reason="offline", at=day(0))


@settings(deadline=None, max_examples=150)
@given(SEQUENCES)
def test_the_first_version_is_the_oldest_that_failed_since_it_was_found(observations):
    finding, failed = None, []
    for observation in observations:
        finding = advance(finding, observation)
        failed += [observation.version] if observation.failed else []
        assert (finding.first_version if finding else None) == min(failed, default=None)


NASTY = st.builds(seen, **ANSWERS, at=st.integers(0, 900).map(day), says=texts(900), label=texts(300))


@settings(deadline=None, max_examples=60)
@given(st.lists(NASTY, min_size=5, max_size=30), texts(20))
def test_a_finding_fits_a_tag_and_comes_back_from_it(observations, reason):
    finding = None
    for observation in observations:
        finding = advance(finding, observation)
        if finding and finding.state == "open" and reason.strip():
            finding = accept(finding, owner="ann", expires="2026-12-31", reason=reason, at=day(0))
        if finding:
            said = finding.model_dump_json()
            assert len(said) < 4_500
            assert Finding.model_validate_json(said) == finding


def longest() -> Finding:
    address = "s3://" + "a" * 507
    observation = seen(
        123_456_789,
        name="n" * 256,
        threat="t" * 64,
        label="\\" * 400,
        subject="s" * 64,
        data="d" * 4_000,
        run_id="r" * 64,
        says="\x01" * 50 + '"' * 900,
        attacks=("margin", "square", "transfer"),
        cost=Cost(queries=1 / 3 * 1e-300, gradients=1 / 3 * 1e-300, seconds=1 / 3 * 1e-300),
        reproducer=Reproducer(uri=address, seed=2**63, command=address),
    )
    return accept(after(observation), owner="o" * 128, expires="2026-06-30", reason="w" * 320, at=START)


def test_even_the_longest_texts_fit_and_keep_two_lines_of_history():
    finding = longest()
    assert 3_600 < len(finding.model_dump_json()) < 4_500  # the question is not trivial
    same = {"name": finding.name, "threat": finding.threat, "subject": finding.subject, "data": "d" * 4_000}
    same |= {"label": finding.label, "run_id": "r" * 64, "reproducer": finding.reproducer}
    for version in range(6):
        finding = advance(finding, seen(200_000_000 + version, **same, at=day(version), says="x" * 900))
        assert len(finding.model_dump_json()) < 4_500
        assert finding.history[-1].version == 200_000_000 + version
        assert finding.history[0].why.startswith("fresh attack: fail")


def test_a_full_history_keeps_its_first_line_and_the_newest_ones():
    finding = accept(after(seen(1)), owner="ann", expires="2026-12-31", reason="offline", at=day(1))
    for version in range(2, 80):
        finding = advance(finding, seen(version))
    versions = [line.version for line in finding.history]
    assert versions[0] == 1
    assert versions[1:] == list(range(80 - len(versions) + 1, 80))
    assert len(versions) > 10
    assert 4_000 < len(finding.model_dump_json()) < 4_500


@pytest.mark.parametrize("field", ["name", "threat", "subject", "run_id"])
def test_a_name_that_could_not_be_stored_whole_is_refused(field):
    with pytest.raises(ValidationError, match="fit a finding"):
        seen(1, **{field: "x" * 300})


# --- acceptance


def test_an_accepted_finding_keeps_a_note_of_what_came():
    finding = STANDS["accepted"]
    assert (finding.owner, finding.expires, finding.reason) == ("ann", date(2026, 6, 30), "offline only")
    assert "ann" in finding.history[-1].why
    noted = advance(finding, seen(4, "pass", "pass"))
    assert noted.state == "accepted"
    assert [line.version for line in noted.history[-2:]] == [3, 4]
    assert "fresh attack: pass" in noted.history[-1].why
    assert advance(noted, seen(2)).history[-1].version == 2
    assert noted.last_version == 4


def test_an_acceptance_ends_after_its_last_day():
    finding = STANDS["accepted"]
    assert at(finding, "2026-06-30T23:59:59+00:00") == finding
    assert at(finding, "2026-07-01T01:00:00+02:00") == finding  # still the 30th in UTC
    ended = at(finding, "2026-07-01T00:00:00+00:00")
    assert (ended.state, ended.expires, ended.reason, ended.owner) == ("open", None, "", "ann")
    assert ended.history[-1].at == "2026-07-01T00:00:00+00:00"
    assert at(ended, "2027-01-01T00:00:00+00:00") == ended
    assert at(finding, datetime(2026, 9, 1, tzinfo=UTC)) == ended


def test_what_came_while_it_was_accepted_counts_when_it_is_seen_again():
    passed = seen(4, "pass", "pass")
    finding = advance(STANDS["accepted"], passed)
    assert finding.state == "accepted"
    again = advance(finding, passed.model_copy(update={"at": "2026-07-02T00:00:00+00:00"}))
    assert (again.state, again.verified_version) == ("verified", 4)


def test_an_acceptance_can_be_prolonged_and_taken_back():
    finding = STANDS["accepted"]
    longer = accept(finding, owner="bob", expires=date(2026, 12, 31), reason="still offline", at=day(100))
    assert (longer.owner, longer.expires, longer.state) == ("bob", date(2026, 12, 31), "accepted")
    back = reopen(longer, reason="it went online", at=day(101))
    assert (back.state, back.expires) == ("open", None)
    assert "it went online" in back.history[-1].why
    with pytest.raises(WrongInput, match="reason is empty"):
        reopen(longer, reason="", at=day(101))


def test_a_verified_finding_can_be_reopened_and_others_cannot():
    back = reopen(crowned(STANDS["verified"], 3, day(4)), reason="doubts", at=day(5))
    assert (back.state, back.verified_version, back.closed_at) == ("open", None, None)
    for stands in ("open", "mitigated, no replay", "regressed"):
        with pytest.raises(WrongInput, match="only an accepted or a verified"):
            reopen(STANDS[stands], reason="doubts", at=day(5))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"owner": " "}, "owner is empty"),
        ({"owner": "x" * 500}, "owner takes 500"),
        ({"reason": ""}, "reason is empty"),
        ({"reason": "x" * 321}, "reason takes 321"),
        ({"expires": "soon"}, "no date"),
        ({"expires": "2026-01-04"}, "not within the year"),  # today
        ({"expires": "2025-12-31"}, "not within the year"),
        ({"expires": "2027-01-06"}, "not within the year"),
        ({"at": "2026-01-04"}, "time zone"),
        ({"at": "yesterday"}, "no moment"),
    ],
)
def test_an_acceptance_without_owner_reason_or_end_is_refused(wrong, says):
    right = {"owner": "ann", "expires": "2027-01-05", "reason": "offline", "at": day(3)}
    assert accept(STANDS["open"], **right).state == "accepted"
    with pytest.raises(WrongInput, match=says):
        accept(STANDS["open"], **(right | wrong))


def test_what_is_verified_is_not_accepted():
    with pytest.raises(WrongInput, match="verified in version 3"):
        accept(STANDS["verified"], owner="ann", expires="2026-06-30", reason="why not", at=day(3))


@pytest.mark.parametrize(
    "tampered",
    [
        {"state": "verified"},
        {"state": "accepted"},
        {"verified_version": 3},
        {"closed_at": day(3)},
        {"reason": "because"},
        {"first_version": 4},
        {"id": "F-1"},
        {"note": "hello"},
    ],
    ids=str,
)
def test_a_tag_that_contradicts_itself_is_no_finding(tampered):
    with pytest.raises(ValidationError):
        Finding.model_validate(STANDS["open"].model_dump() | tampered)


# --- time


def test_age_and_patch_latency_are_plain_arithmetic():
    verified = after(seen(1, at=day(0)), seen(2, "pass", "pass", at=day(10)))
    assert age_days(verified, day(31.5)) == 31.5
    assert patch_latency_days(verified) is None
    assert crowned(verified, 1, day(20)) == verified  # an older version mends nothing
    closed = crowned(verified, 3, day(12.25))
    assert patch_latency_days(closed) == 12.25
    assert "champion" in closed.history[-1].why
    assert crowned(closed, 4, day(99)) == closed  # the first one counts


@pytest.mark.parametrize("stands", [name for name in STANDS if name != "verified"])
def test_only_a_verified_finding_is_closed_by_a_champion(stands):
    assert crowned(STANDS[stands], 9, day(9)) == STANDS[stands]


def test_overdue_is_what_waits_longer_than_allowed():
    findings = list(STANDS.values())  # regressed was found on day 1, the others on day 2
    waiting = [name for name in STANDS if name not in ("verified", "accepted")]

    def named(days: float) -> list[str]:
        late = overdue(findings, 30, day(days))
        return [name for name in STANDS if at(STANDS[name], day(days)) in late]

    assert named(31) == []
    assert named(31.5) == ["regressed"]
    assert named(32.5) == waiting
    assert named(300) == [*waiting, "accepted"]  # which has ended


def test_metrics_of_a_ledger_count_states_and_average_latencies():
    closed = [crowned(after(seen(1, at=day(0)), seen(2, "pass", "pass", at=day(1))), 2, day(days)) for days in (2, 7.5)]
    assert ledger_metrics([*STANDS.values(), *closed], day(42)) == {
        "findings/open": 1,
        "findings/mitigated": 3,
        "findings/verified": 3,
        "findings/regressed": 1,
        "findings/accepted": 1,
        "findings/oldest_open_days": 41,
        "findings/patch_latency_days": 4.75,
    }
    later = ledger_metrics([STANDS["accepted"]], day(300))
    assert (later["findings/open"], later["findings/accepted"]) == (1, 0)


def test_metrics_of_an_empty_ledger_invent_no_latency():
    metrics = ledger_metrics([], day(0))
    assert "findings/patch_latency_days" not in metrics
    assert set(metrics.values()) == {0.0}


@pytest.mark.parametrize(("floor", "state"), [(0.5, "open"), (0.6, "verified"), (0.7, "verified")])
def test_a_pass_at_a_lower_floor_than_was_missed_closes_nothing(floor, state):
    found = advance(None, seen(1, "fail", "fail", floor=0.6))
    assert advance(found, seen(2, "pass", "pass", floor=floor)).state == state


def test_the_highest_floor_that_was_missed_is_the_one_to_reach():
    found = advance(advance(None, seen(1, "fail", "fail", floor=0.6)), seen(2, "fail", "fail", floor=0.8))
    assert found.floor == 0.8
    assert advance(found, seen(3, "fail", "fail", floor=0.5)).floor == 0.8
    assert advance(found, seen(3, "pass", "pass", floor=0.6)).state == "open"
