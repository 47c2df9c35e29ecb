"""What is due, what waits, and whose plan it is: decided from what stands in the registry, without one attack."""

import json
import logging
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest

from flows.__main__ import main
from flows.asked import asked, standing, usual
from flows.config import EvaluateConfig
from flows.harden import harden_model, why_not
from flows.plans import adopt, check_hardening, digest_of, how, plan_of, remember
from flows.recipes import configured, two_kinds
from flows.watch import BROKE, RETRY, Watched, _asked, due, watch, why_stale
from tasks.data import Data, describe, load
from tasks.errors import EvidenceBroken, WrongInput
from tasks.ledger import write_findings
from tasks.plan import HARDENED, PLAN, Hardening, keep_plan, last_hardening, note_hardening, plan_digest, why_wait
from tasks.posture import Record
from tasks.posture.finding import Observation
from tasks.posture.findings import advance
from tasks.posture.lost import lost
from tasks.promote import crown
from tasks.recall import expected_facts, known_of
from tasks.replay import examples_of
from tasks.track import aliases, client, make_model, names, registered, set_alias, tag_model, tag_version
from tasks.verdicts import Policy
from tests.posture.made_up import record, threat

NAME = "two-kinds"
NOW = datetime.now(UTC)


@cache
def data_of(name: str) -> Data:
    return describe(name, load(name))


def measured(config: EvaluateConfig, version: int, verdict: str = "pass", days: float = 0, **facts) -> Record:
    """A record as measuring the version by that config, so many days ago, would have left it."""
    of = expected_facts(data_of(config.dataset), config.evaluation)
    of.pop("threat_digests")
    of |= {"name": NAME, "verdict": verdict, "suite": config.evaluation.suite, "policy": config.policy.digest}
    of |= {"measured_at": (NOW - timedelta(days=days)).isoformat(), "n": of.pop("samples")}
    asked = config.evaluation.threats[0]
    row = threat(100, n=of["n"], name=asked.name, label=str(asked), digest=asked.digest)
    return record(version, row, **of | facts)


def registry(*verdicts: str | None, champion: int | None = None, days: float = 0) -> EvaluateConfig:
    """A planned model with a version for each verdict, unmeasured where it is None; how its versions are measured."""
    plan = adopt(NAME, "two-kinds")
    for number, verdict in enumerate(verdicts, 1):
        client().create_model_version(NAME, source=f"file:///nowhere/{number}")
        if verdict:
            kept = measured(plan.as_evaluation(number), number, verdict, days)
            tag_version(NAME, number, {f"redoubt.record.{kept.key}": kept.model_dump_json()})
    if champion:
        set_alias(NAME, "champion", champion)
    return plan.as_evaluation(1)


def numbers(*, promote: bool = False) -> list[int]:
    found = due(NAME, plan_of(NAME), data_of, promote=promote, now=NOW)
    return [one.version.number for one in found]


def test_a_watch_that_saw_no_model_does_not_say_that_all_is_well():
    (told,) = Watched().lines()
    assert told.startswith("No version is registered, or none that may be read")
    assert Watched(looked_at=("a", "b")).lines() == ["Every version of a, b stands as it should."]


def test_a_watch_over_a_name_that_nothing_is_known_of_is_refused_before_anything_is_measured(home, monkeypatch):
    monkeypatch.setattr("flows.watch.announce_watch", lambda **_: None)
    registry("fail", champion=1)
    adopt("planned", "two-kinds")
    make_model("empty")
    with pytest.raises(WrongInput, match=r"no model is registered as 'two-kind'\. Did you mean 'two-kinds'"):
        watch.fn([NAME, "two-kind"])
    with pytest.raises(WrongInput, match="'empty' has no version"):
        watch.fn(["empty"])
    found = watch.fn([NAME, "planned"])
    assert found.lines() == [f"Every version of {NAME} stands as it should."]


@pytest.mark.parametrize(
    ("verdicts", "champion", "promote", "expected"),
    [
        ((None,), None, False, [1]),  # a new model
        (("fail",), None, False, []),
        (("fail", "pass", None), 2, False, [3]),  # newer than the champion
        ((None, "pass", "fail"), 2, False, [1]),  # older, but never measured
        (("fail", "pass", "pass"), 2, False, []),
        (("fail", "pass", "pass"), 2, True, [3]),  # may take the champion's place
        (("fail", "pass", "fail"), 2, True, []),
        (("fail", "pass"), 2, True, []),
    ],
)
def test_due_is_what_is_live_newer_or_unmeasured_and_has_no_verdict(home, verdicts, champion, promote, expected):
    registry(*verdicts, champion=champion)
    assert numbers(promote=promote) == expected


@pytest.mark.parametrize(
    "change",
    ["policy.floor=0.8", "evaluation.suite=quick", "evaluation.samples=100", "evaluation.threats.0.eps=0.05"],
)
def test_another_policy_suite_sample_or_threat_makes_live_versions_due_and_old_ones_not(home, change):
    registry("fail", "pass", "fail", champion=2)
    adopt(NAME, "two-kinds", (change,))
    assert numbers() == [2, 3]


def test_another_digest_of_the_data_makes_live_versions_due(home):
    registry("fail", "pass", champion=2)
    assert numbers() == []
    other = data_of("two-kinds").model_copy(update={"digest": "0" * 16})
    found = due(NAME, plan_of(NAME), lambda _: other, promote=False, now=NOW)
    assert [one.version.number for one in found] == [2]


def test_another_code_of_the_suite_makes_live_versions_due(home, monkeypatch):
    registry("fail", "pass", champion=2)
    from tasks.metrics import EvaluationConfig

    suite = EvaluationConfig.resolved_suite

    def changed(config):
        return suite(config).model_copy(update={"attacks": suite(config).attacks[:1]})

    monkeypatch.setattr(EvaluationConfig, "resolved_suite", changed)
    assert numbers() == [2]


def test_a_live_version_is_due_when_its_evidence_is_too_old_and_says_so(home):
    registry("fail", "pass", champion=2, days=31)
    (one,) = due(NAME, plan_of(NAME), data_of, promote=False, now=NOW)
    assert one.version.number == 2
    assert "allowed are 30 days" in one.stale


@pytest.mark.parametrize(("days", "stale"), [(0, False), (29, False), (31, True), (-0.5, False), (-2, True)])
def test_evidence_is_stale_past_the_policy_and_when_it_lies_in_the_future(days, stale):
    kept = measured(two_kinds().as_evaluation(1), 1, days=days)
    assert bool(why_stale(kept, Policy(), NOW)) is stale


def test_a_version_that_a_run_has_just_registered_is_left_to_that_run(home):
    registry("fail", None)
    assert numbers() == [2]
    tag_version(NAME, 2, {"redoubt.verdict": "pass"})  # as it is registered, before its record is written
    assert numbers() == []
    later = due(NAME, plan_of(NAME), data_of, promote=False, now=NOW + timedelta(hours=1))
    assert [one.version.number for one in later] == [2]  # that run was killed


def test_what_broke_is_asked_again_after_hours_or_when_something_else_is_asked(home):
    config = registry(None)
    for age, expected in ((RETRY / 2, []), (RETRY * 2, [1]), (-RETRY, [1])):
        told = {"at": (NOW - age).isoformat(), "asked": _asked(config, data_of("two-kinds"))}
        tag_version(NAME, 1, {BROKE: json.dumps(told)})
        assert numbers() == expected
    tag_version(NAME, 1, {BROKE: json.dumps(told | {"at": NOW.isoformat()})})
    assert numbers() == []
    adopt(NAME, "two-kinds", ("policy.floor=0.8",))
    assert numbers() == [1]


def test_a_warm_start_counts_as_measured_whatever_it_began_at(home):
    registry("pass", champion=1)
    plan = adopt(NAME, "two-kinds", ("evaluation.suite=warm", "evaluation.warm=true"))
    assert numbers() == [1]
    kept = measured(plan.as_evaluation(1), 1, warm="0123456789abcdef")
    tag_version(NAME, 1, {f"redoubt.record.{kept.key}": kept.model_dump_json()})
    assert numbers() == []
    assert standing(registered(NAME)[0], plan.as_evaluation(1), data_of("two-kinds")) == kept


def test_the_weekly_suite_does_not_become_that_of_every_night(home):
    config = registry("fail")
    deep = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"suite": "deep"})})
    kept = measured(deep, 1, "fail", days=-0.1)
    tag_version(NAME, 1, {f"redoubt.record.{kept.key}": kept.model_dump_json()})
    (version,) = registered(NAME)
    assert len(version.records()) == 2
    assert usual(version).suite == "standard"
    assert how(version, plan_of(NAME), suite="deep").evaluation.suite == "deep"


def test_a_plan_is_a_recipe_under_another_name_and_needs_no_version(home):
    plan = adopt("Fraud model (v2)", "digits", ("policy.floor=0.7",))
    assert (plan.name, plan.dataset, plan.policy.floor) == ("Fraud model (v2)", "digits", 0.7)
    assert plan_of("Fraud model (v2)") == plan
    assert names() == ("Fraud model (v2)",)
    assert registered("Fraud model (v2)") == ()
    assert plan_of("nobody") is None


def test_a_run_that_takes_the_place_of_another_plan_says_what_it_changes(home, caplog):
    remember(two_kinds())
    remember(two_kinds(), "pass")
    assert caplog.text == ""
    adopted = adopt(NAME, "two-kinds", ("policy.floor=0.8",))
    remember(two_kinds())
    assert caplog.text == ""
    remember(two_kinds(), "fail")
    assert plan_of(NAME) == adopted
    assert f"the plan of {NAME} stays, since this run did not pass; its config differs in: policy. " in caplog.text
    remember(two_kinds(), "pass")
    assert f"the plan of {NAME} is this run's config from now on; changed: policy\n" in caplog.text
    tag_model(NAME, {PLAN: "no JSON"})
    remember(two_kinds())
    assert plan_of(NAME).model_dump() == two_kinds().model_dump()


@pytest.mark.parametrize("name", ["a/b", "a:b", "it's", "models:/x", " ", ""])
def test_a_name_that_no_model_can_have_is_refused(home, name):
    with pytest.raises(WrongInput, match="name"):
        adopt(name, "digits")
    assert names() == ()


def test_what_a_run_waives_is_waived_for_once_unless_somebody_adopts_it(home, caplog):
    waives = configured("two-kinds", ("policy.may_ask_less=true",))
    remember(waives)
    assert not plan_of(NAME).policy.may_ask_less
    remember(waives, "pass")
    assert caplog.text == ""
    adopt(NAME, "two-kinds", ("policy.may_ask_less=true",))
    remember(two_kinds(), "pass")
    assert plan_of(NAME).policy.may_ask_less
    assert digest_of(two_kinds()) != digest_of(waives)
    old = two_kinds().model_dump(mode="json")
    del old["policy"]["may_ask_less"]  # a plan from before there was that word
    assert digest_of(two_kinds()) == plan_digest(old, two_kinds().evaluation.resolved_suite().digest)
    tag_model(NAME, {PLAN: json.dumps(old)})
    remember(two_kinds(), "fail")
    assert caplog.text == ""


def test_a_plan_that_no_tag_holds_is_refused_before_anything_is_made(home):
    with pytest.raises(WrongInput, match="a registry's tag holds 5000"):
        keep_plan("large", {"mask": [True] * 2000})
    assert names() == ()


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"name": "two-kinds"}'])
def test_a_plan_or_a_try_that_was_changed_is_named_and_not_guessed(home, text):
    make_model(NAME)
    tag_model(NAME, {PLAN: text, HARDENED: text})
    with pytest.raises(EvidenceBroken, match="plan"):
        plan_of(NAME)
    with pytest.raises(EvidenceBroken, match=HARDENED):
        last_hardening(NAME)


def test_a_plan_copied_from_another_model_is_refused(home):
    adopt(NAME, "two-kinds")
    keep_plan("other", plan_of(NAME).model_dump(mode="json"))
    with pytest.raises(EvidenceBroken, match="is that of 'two-kinds'"):
        plan_of("other")


def tried(hours: float, outcome: str = "fail", plan: str = "p", data: str = "d") -> Hardening:
    at = (NOW - timedelta(hours=hours)).isoformat()
    return Hardening(at=at, plan=plan, data=data, run_id="r", outcome=outcome)


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (None, ""),
        (tried(1, plan="other"), "the cooldown is 24 hours"),
        (tried(25, plan="other"), ""),
        (tried(25, data="other"), ""),
        (tried(2000), "this very plan was tried"),
        (tried(2000, "pass"), "this very plan was tried"),
        (tried(1, "started"), "the cooldown"),  # it may still be running
        (tried(25, "started"), ""),  # it was killed: worth another try
        (tried(-3, plan="other"), "in the future"),  # a clock that was set back
        (tried(-3000, plan="other"), "in the future"),
    ],
)
def test_hardening_waits_for_the_cooldown_and_for_another_plan(last, why):
    said = why_wait(last, plan="p", data="d", now=NOW, cooldown_hours=24)
    assert (why in said) if why else said == ""


@pytest.mark.parametrize(
    ("version", "changes", "why"),
    [
        (7, (), "it has no version 7"),
        (1, (), "neither its champion nor its newest"),
        (2, (), "no measurement of version 2 is a fail; it has: pass"),
        (3, ("policy.max_rounds=0",), "allows no round"),
        (3, (), ""),
        (None, (), ""),
    ],
)
def test_only_a_champion_or_newest_version_that_failed_is_hardened(home, version, changes, why):
    registry("fail", "pass", "fail", champion=2)
    plan = adopt(NAME, "two-kinds", changes)
    said = why_not(NAME, version or 3, plan, 24)
    assert (why in said) if why else said == ""


def test_without_a_plan_or_a_version_nothing_is_hardened_and_the_command_says_what_to_write(home):
    make_model("bare")
    assert harden_model.fn("bare").says == "'bare' was not hardened: no version of it is registered."
    client().create_model_version("bare", source="file:///nowhere")
    found = harden_model.fn("bare", 1, reason="a test")
    assert (found.hardened, found.failed) == (False, 1)
    assert "redoubt adopt bare --like RECIPE" in found.says


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_why_nothing_is_hardened_is_said_once(home, monkeypatch, capsys, words):
    registry("pass")
    log = logging.getLogger("redoubt")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr("flows.ephemeral.prefect_api", lambda: nullcontext(lambda: None))
    monkeypatch.setattr("flows.harden.harden_model", harden_model.fn)
    monkeypatch.setattr("sys.argv", ["redoubt", "harden", NAME, *words])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    assert stop.value.code == 0
    assert said.out.count("was not hardened") == 1
    assert "was not hardened" not in said.err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("two-kind",), "no model is registered as 'two-kind'. Did you mean 'two-kinds'"),
        ((NAME, "--version", "7"), "'two-kinds' has no version 7. Registered: 1."),
        (("empty",), "'empty' has no version"),
        (("bare",), "Write: redoubt adopt bare --like RECIPE"),
    ],
)
def test_what_nobody_can_harden_is_wrong_input_before_anything_is_started(home, monkeypatch, capsys, words, hint):
    registry("fail")
    make_model("empty")
    make_model("bare")
    client().create_model_version("bare", source="file:///nowhere")
    monkeypatch.setattr("flows.ephemeral.prefect_api", lambda: pytest.fail("a server was started"))
    monkeypatch.setattr("sys.argv", ["redoubt", "harden", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert (stop.value.code, hint in capsys.readouterr().err) == (3, True)


def test_what_can_be_hardened_has_nothing_to_complain_of(home):
    registry("fail", "pass")
    for version in (None, 1, 2):
        check_hardening(NAME, version)


def test_the_same_plan_is_not_tried_twice_and_a_changed_one_is(home):
    registry("fail")
    plan = plan_of(NAME)
    last = Hardening(
        at=(NOW - timedelta(days=9)).isoformat(),
        plan=digest_of(plan),
        data=data_of("two-kinds").digest,
        run_id="r",
        outcome="fail",
    )
    note_hardening(NAME, last)
    assert "this very plan was tried" in harden_model.fn(NAME, 1).says
    assert why_not(NAME, 1, adopt(NAME, "two-kinds", ("hardening.epochs=9",)), 24) == ""


def observation(version: int, fresh: str, replay: str = "not run") -> Observation:
    facts = {"name": NAME, "kind": "robustness", "threat": "linf_0.1", "label": "L-inf 0.1", "data": "two-kinds"}
    facts |= {
        "run_id": "r",
        "at": (NOW - timedelta(hours=9 - version)).isoformat(),
        "sound": True,
        "says": "61 of 100 were fooled.",
    }
    return Observation(version=version, fresh=fresh, replay=replay, **facts)


def test_a_finding_without_examples_says_what_to_write_for_its_model():
    finding = advance(None, observation(1, "fail")).model_copy(update={"name": "fraud (v2)"})
    with pytest.raises(WrongInput, match=r"redoubt reattack 'fraud \(v2\)'$"):
        examples_of(finding)


def test_a_crown_moves_the_alias_keeps_the_one_before_and_closes_what_was_mended(home):
    registry("fail", "pass", "pass", champion=1)
    mended = advance(advance(None, observation(1, "fail")), observation(2, "pass", "pass"))
    write_findings(NAME, [mended])
    assert mended.closed_at is None
    assert crown.fn(NAME, 2, "r", against=1)
    assert aliases(NAME) == {"champion": 2, "previous": 1}
    assert known_of(NAME).findings[0].closed_at is not None
    assert crown.fn(NAME, 2, "r", against=2)  # once more changes nothing
    assert not crown.fn(NAME, 3, "r", against=1)  # who was compared with another champion
    assert aliases(NAME) == {"champion": 2, "previous": 1}


def test_what_was_lost_is_a_pass_or_a_finding_that_came_back():
    config = two_kinds().as_evaluation(1)
    passed, failed = (measured(config, 2, verdict, days) for verdict, days in (("pass", 2), ("fail", 1)))
    unsure = measured(config, 2, "cannot tell")
    assert lost([], failed, [], []) == ()
    assert lost([passed], passed, [], []) == ()
    assert lost([failed, passed], unsure, [], []) == ()  # the last one was no pass
    assert "passed at" in lost([passed], failed, [], [])[0]
    assert "now: cannot tell" in lost([passed], unsure, [], [])[0]
    mended = advance(advance(None, observation(1, "fail")), observation(2, "pass", "pass"))
    back = advance(mended, observation(3, "fail"))
    assert back.state == "regressed"
    assert lost([], failed, [mended], [back]) == (f"finding {back.id} came back in version 2: 61 of 100 were fooled.",)
    assert lost([], failed, [back], [back]) == ()  # it was said before


@pytest.mark.parametrize(("norm", "eps", "named"), [("unbounded", None, "unbounded"), ("l2", "0.5", "l2_0.5")])
def test_a_model_that_was_never_evaluated_needs_a_radius_only_where_the_norm_has_one(norm, eps, named):
    words = dict.fromkeys(("like", "name", "suite", "samples", "seed", "floor")) | {"changes": ()}
    model = "tasks.models.networks:two_kinds_mlp"
    config = asked(model, dataset="two-kinds", norm=norm, eps=eps, **words)
    assert [threat.name for threat in config.evaluation.threats] == [named]
    for dataset, said in ((None, "was not evaluated before"), ("two-kinds", "Write --dataset D --eps 0.03")):
        with pytest.raises(WrongInput, match=said):
            asked(model, dataset=dataset, norm=None, eps=None, **words)


def test_a_radius_is_held_against_the_bounds_that_are_set_beside_it():
    words = dict.fromkeys(("like", "name", "suite", "samples", "seed", "floor", "norm"))
    words |= {"dataset": "two-kinds", "eps": "5"}
    bounds = ("evaluation.threats.0.bounds=[0, 255]",)
    (threat,) = asked("tasks.models.networks:two_kinds_mlp", changes=bounds, **words).evaluation.threats
    assert (threat.eps, threat.bounds) == (5, (0, 255))
    with pytest.raises(WrongInput, match=r"eps=5 spans the whole input range 0\.\.1.*eps='5/255'"):
        asked("tasks.models.networks:two_kinds_mlp", changes=(), **words)


def test_adopt_prints_the_plan_and_says_how_to_make_one(home, capsys, monkeypatch):
    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["redoubt", "adopt", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out + said.err

    code, said = call("mine")
    assert (code, "Give it one: --like RECIPE" in said) == (3, True)
    assert call("mine", "--set", "policy.floor=1")[0] == 3
    code, written = call("mine", "--like", "digits", "--set", "policy.floor=0.7")
    assert (code, "floor: 0.7" in written) == (0, True)
    assert call("mine") == (0, written)
