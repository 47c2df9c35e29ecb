"""Each verb's body against a real MLflow store, without a Prefect server."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flows.__main__ import main
from flows.recipes import two_kinds
from tasks.attacks import ThreatModel
from tasks.data import Data, describe, load
from tasks.decide import decide, warn_of_few_samples
from tasks.errors import EvidenceBroken, ModelRejected, StoreUnreachable, WrongInput
from tasks.evaluate import champion_report, evaluate_robustness, warm_start
from tasks.fetch import fetch_version
from tasks.home import folder as home_folder
from tasks.metrics import EvaluationConfig, RobustnessReport
from tasks.models import StoredModel, fit
from tasks.promote import enter, promote, roll_back
from tasks.record import record
from tasks.results import load_adversarial
from tasks.track import CROWNED, aliases, client, load_bytes, open_run, open_stage, registered, set_alias, tag_version
from tasks.train import release, train_model
from tasks.verdicts import Policy, Verdict
from tasks.verify import verify_model
from tasks.vouch import asked_when_crowned

CONFIG = two_kinds()
QUICK = CONFIG.training.model_copy(update={"epochs": 3})
EVALUATION = CONFIG.evaluation.model_copy(update={"suite": "quick", "samples": 300})
LENIENT = Policy(floor=0.0, clean_floor=0.0, min_samples=100)


@pytest.fixture
def run_id(home: Path) -> Iterator[str]:
    with open_run("steps", {"a": 1}) as run_id:
        yield run_id


@pytest.fixture
def data() -> Data:
    return describe("two-kinds", load("two-kinds"))


@pytest.fixture
def model(data: Data, run_id: str) -> StoredModel:
    return train_model.fn(data, QUICK, stage="baseline", run_id=run_id)


def test_a_trained_model_is_kept_without_pickle_and_comes_back(model, run_id):
    artifacts = [a.path for a in client().list_artifacts(model.run_id, "weights")]
    assert artifacts == ["weights/model.safetensors"]
    import mlflow.pytorch

    graph = mlflow.pytorch.load_model(model.model_uri)  # refused by MLflow if anything in it were a pickle
    from tasks.models import from_bytes

    network = from_bytes(model.model, load_bytes(model.weights), model.digest)
    x = load("two-kinds")["test"][0][:7]
    torch.testing.assert_close(graph(x), network(x))


def test_changed_weights_are_refused(model, data, run_id):
    changed = model.model_copy(update={"digest": "0" * 16})
    with pytest.raises(EvidenceBroken, match="hash to"):
        evaluate_robustness.fn(changed, data, EVALUATION, split="test", run_id=run_id)


def test_a_report_s_every_number_is_in_mlflow_with_its_artifacts(model, data, run_id):
    report = evaluate_robustness.fn(model, data, EVALUATION, split="test", run_id=run_id)
    kept = client().get_run(model.run_id)
    for key, value in report.metrics().items():
        assert kept.data.metrics[key] == pytest.approx(value)
    (threat,) = report.threats
    fooled = load_adversarial(model.run_id, threat.threat.name)
    assert len(fooled["rows"]) == sum(row.fooled for row in threat.attacks) > 0
    assert fooled["x_adv"].shape[1:] == (201,)
    import json

    table = json.loads(load_bytes(f"runs:/{model.run_id}/outcomes/{threat.threat.name}.json"))
    assert len(table["data"]) == 300
    column = table["columns"].index("fooled")
    assert sum(row[column] for row in table["data"]) == 300 - round(threat.robust.value * 300)


def test_numbers_measured_on_select_bear_that_name(model, data, run_id):
    evaluate_robustness.fn(model, data, EVALUATION, split="select", run_id=run_id)
    metrics = client().get_run(model.run_id).data.metrics
    assert "select/clean_accuracy" in metrics
    assert "clean_accuracy" not in metrics


def entered(model: StoredModel, report: RobustnessReport, verdict: Verdict) -> int:
    """The version that the model became, under the alias that the verdict gives it."""
    number = enter.fn("m", model, report, verdict)
    promote.fn("m", number, model, report, verdict, against=aliases("m").get("champion"))
    return number


def test_only_a_pass_moves_the_champion_and_previous_remembers(model, data, run_id, caplog):
    report = evaluate_robustness.fn(model, data, EVALUATION, split="test", run_id=run_id)
    passed = decide.fn(model, report, LENIENT)
    failed = decide.fn(model, report, Policy(floor=0.99))
    assert (passed.outcome, failed.outcome) == ("pass", "fail")
    assert entered(model, report, failed) == 1
    assert aliases("m") == {"challenger": 1}
    assert entered(model, report, passed) == 2
    assert "by a pass under suite 'quick', which is there to look, not to decide" in caplog.text
    assert entered(model, report, failed) == 3
    assert aliases("m") == {"challenger": 3, "champion": 2}
    assert entered(model, report, passed) == 4
    assert aliases("m") == {"challenger": 3, "champion": 4, "previous": 2}
    assert roll_back("m") == 2
    assert aliases("m") == {"challenger": 3, "champion": 2, "previous": 4}
    tags = client().get_model_version("m", "4").tags
    assert tags["redoubt.verdict"] == "pass"
    assert tags["redoubt.data_digest"] == data.digest
    assert tags["redoubt.suite_digest"] == report.threats[0].suite_digest


def test_a_champion_that_was_crowned_meanwhile_stays(model, data, run_id, caplog):
    report = evaluate_robustness.fn(model, data, EVALUATION, split="test", run_id=run_id)
    passed = decide.fn(model, report, LENIENT)
    for number, against in ((1, None), (2, 1), (3, 1), (4, None)):
        assert enter.fn("m", model, report, passed) == number
        promote.fn("m", number, model, report, passed, against=against)
    assert aliases("m") == {"champion": 2, "previous": 1, "challenger": 4}
    assert "version 3 of 'm' passed, but against champion 1, and there is champion 2 by now" in caplog.text
    assert "version 4 of 'm' passed, but against no champion" in caplog.text


def test_a_command_that_promoting_prints_bears_the_name_as_a_shell_takes_it(model, data, run_id, caplog):
    report = evaluate_robustness.fn(model, data, EVALUATION, split="test", run_id=run_id)
    passed = decide.fn(model, report, LENIENT)
    for _ in range(2):
        number = enter.fn("fraud (v2)", model, report, passed)
        promote.fn("fraud (v2)", number, model, report, passed, against=None)
    assert "redoubt reattack 'fraud (v2)' --suite standard" in caplog.text
    assert "redoubt reattack 'fraud (v2)' --versions 2 --again" in caplog.text


def test_easier_questions_do_not_move_the_champion(data, run_id):
    """A weak model passes at a tiny radius; the champion had passed at a larger one, and stays."""
    (threat,) = EVALUATION.threats
    easy = EVALUATION.model_copy(update={"threats": (threat.model_copy(update={"eps": threat.eps / 10}),)})

    def told(stored: StoredModel, number: int | None, config: EvaluationConfig, policy: Policy, best=None) -> Verdict:
        report = evaluate_robustness.fn(stored, data, config, split="test", run_id=run_id)
        verdict = decide.fn(stored, report, policy, champion=best)
        asked = {"evaluation": config.model_dump(mode="json"), "policy": policy.model_dump(mode="json")}
        new = enter.fn("m", stored, report, verdict) if number is None else number
        record.fn("m", new, stored, data, report, verdict, asked, champion=best, run_id=run_id)
        if number is None:
            promote.fn("m", new, stored, report, verdict, against=best.version if best else None)
        return verdict

    def ask(config: EvaluationConfig, policy: Policy = LENIENT) -> str:
        champion = champion_report.fn("m", data, config, max_age_days=30, run_id=run_id)
        stored = train_model.fn(data, QUICK, stage=f"try-{len(registered('m'))}", run_id=run_id)
        return told(stored, None, config, policy, champion).outcome

    assert ask(EVALUATION) == "pass"
    assert ask(easy) == "cannot tell"
    assert aliases("m") == {"champion": 1, "challenger": 2}
    assert ask(easy, LENIENT.model_copy(update={"may_ask_less": True})) == "pass"
    assert ask(EVALUATION) == "pass"
    assert ask(easy) == "cannot tell"
    assert aliases("m") == {"champion": 4, "challenger": 5, "previous": 3}

    curious = EVALUATION.model_copy(update={"threats": (ThreatModel(norm="l1", eps=0.1),)})
    stored = fetch_version(registered("m")[3], run_id=open_stage(run_id, "curious"))
    assert told(stored, 4, curious, LENIENT).outcome == "pass"
    assert ask(EVALUATION) == "pass"  # what else the champion was asked since binds nobody

    crowned = registered("m")[5].tags[CROWNED]
    for forged in (registered("m")[3].tags[CROWNED], stored.run_id, "0" * 32):  # of another version, or of none
        tag_version("m", 6, {CROWNED: forged})
        assert asked_when_crowned(registered("m")[5]).unreadable == f"run {forged}"
        assert any(forged in one for one in verify_model("m", 6)[0].mismatches)
    assert ask(EVALUATION) == "cannot tell"
    tag_version("m", 6, {CROWNED: crowned})
    assert asked_when_crowned(registered("m")[5]).threats == EVALUATION.threats
    assert verify_model("m", 6)[0].mismatches == ()


def test_rolling_back_without_a_previous_champion_is_refused(model, data, run_id, monkeypatch, capsys):
    def rolled(name):
        monkeypatch.setattr("sys.argv", ["redoubt", "rollback", name])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, "".join(capsys.readouterr())

    code, said = rolled("nobody")
    assert code == 3
    assert "no model is registered as 'nobody'" in said
    report = evaluate_robustness.fn(model, data, EVALUATION, split="test", run_id=run_id)
    passed = decide.fn(model, report, LENIENT)
    assert entered(model, report, passed) == 1
    code, said = rolled("m")
    assert code == 3
    assert "has no previous champion to go back to. See: redoubt history m" in said
    assert entered(model, report, passed) == 2
    code, said = rolled("m")
    assert code == 0
    assert said.startswith("m version 1 is champion again.\n")
    assert aliases("m") == {"champion": 1, "previous": 2}


def test_a_champion_s_report_is_reused_or_measured_again_under_a_new_suite(model, data, run_id):
    assert champion_report.fn("m", data, EVALUATION, max_age_days=30, run_id=run_id) is None
    report = evaluate_robustness.fn(model, data, EVALUATION, split="test", run_id=run_id)
    verdict = decide.fn(model, report, LENIENT)
    entered(model, report, verdict)
    asked = {"evaluation": EVALUATION.model_dump(mode="json"), "policy": LENIENT.model_dump(mode="json")}
    record.fn("m", 1, model, data, report, verdict, asked, run_id=run_id)
    assert champion_report.fn("m", data, EVALUATION, max_age_days=30, run_id=run_id).report == report
    stronger = EVALUATION.model_copy(update={"suite": "standard"})
    fresh = champion_report.fn("m", data, stronger, max_age_days=30, run_id=run_id).report
    assert fresh.threats[0].suite_digest == stronger.resolved_suite().digest != report.threats[0].suite_digest
    assert fresh.weights_digest == report.weights_digest
    old = champion_report.fn("m", data, EVALUATION, max_age_days=1e-9, run_id=run_id).report
    assert old.measured_at >= report.measured_at
    assert old.stage == "champion-1"  # and not the report that was kept
    assert old.threats[0].standing == report.threats[0].standing
    assert fetch_version(registered("m")[0]).digest == model.digest


@pytest.mark.parametrize("suite", ["quick", "warm"])
def test_all_models_of_a_run_and_the_champion_begin_at_the_same_stored_examples(model, data, run_id, suite):
    def judged(stored: StoredModel, config: EvaluationConfig, best=None, start=None) -> Verdict:
        report = evaluate_robustness.fn(stored, data, config, split="test", run_id=run_id, start=start)
        verdict = decide.fn(stored, report, LENIENT, champion=best)
        asked = {"evaluation": config.model_dump(mode="json"), "policy": LENIENT.model_dump(mode="json")}
        number = enter.fn("m", stored, report, verdict)
        record.fn("m", number, stored, data, report, verdict, asked, champion=best, run_id=run_id)
        promote.fn("m", number, stored, report, verdict, against=best.version if best else None)
        return verdict

    warm = EVALUATION.model_copy(update={"suite": suite, "warm": True})
    if suite == "warm":
        with pytest.raises(WrongInput, match=r"m has none yet under linf_0\.1\. Write evaluation\.suite: standard"):
            warm_start("m", data, warm)
        with pytest.raises(WrongInput, match=r"evaluation\.warm is false"):
            warm_start("m", data, EVALUATION.model_copy(update={"suite": suite}))
    else:
        assert warm_start("m", data, warm) == {}
    assert judged(model, EVALUATION).outcome == "pass"
    assert warm_start("m", data, EVALUATION) == {}
    start = warm_start("m", data, warm)
    champion = champion_report.fn("m", data, warm, start=start, max_age_days=30, run_id=run_id)
    other = train_model.fn(data, QUICK.model_copy(update={"seed": 1}), stage="other", run_id=run_id)
    for number in (2, 3):  # what the first one leaves in the corpus changes nothing for the second
        verdict = judged(other, warm, champion, start)
        against = [check for check in verdict.checks if check.name.startswith("champion, ")]
        assert len(against) == 1 + len(warm.threats), verdict.reasons
        (kept,) = registered("m")[number - 1].records()
        assert kept.warm == champion.report.warm != ""
    assert warm_start("m", data, warm)["linf_0.1"].digest != start["linf_0.1"].digest
    judged(model, warm, start=start)
    set_alias("m", "champion", 4)
    assert champion_report.fn("m", data, warm, start=start, max_age_days=30, run_id=run_id).report.stage == "baseline"


@pytest.mark.parametrize(
    ("samples", "policy", "champion", "said"),
    [
        (300, {}, True, None),
        (20, {"min_samples": 1}, False, "20 test samples will be measured, but this policy needs 35 to pass; set eval"),
        (60, {"min_samples": 1}, True, "needs 81 to pass; set evaluation.samples to 81 or more"),
        (60, {"min_samples": 1}, False, None),
        (None, {"min_samples": 10**6}, False, "the test split holds 2048, so"),
        (None, {"floor": 1.0}, False, "can never be passed: a floor of 1"),
        (None, {"clean_budget": 0.0}, True, "can never be passed: a tolerance of 0"),
    ],
)
def test_too_few_samples_are_named_before_anything_is_trained(data, samples, policy, champion, said, caplog):
    policy = CONFIG.policy.model_copy(update=policy)
    config = EVALUATION.model_copy(update={"samples": samples})
    warning = warn_of_few_samples(data, config, policy, champion=champion)
    assert caplog.messages == ([warning] if warning else [])
    assert warning == said or said in warning


def test_training_goes_on_from_the_checkpoint_of_a_killed_run(data, run_id, monkeypatch):
    config = QUICK.model_copy(update={"epochs": 4})
    whole = train_model.fn(data, config, stage="whole", run_id=run_id)

    module = sys.modules[fit.__module__]
    real, calls = module._save, []

    def dies(state, path):
        real(state, path)
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_save", dies)
    with pytest.raises(KeyboardInterrupt):
        train_model.fn(data, config, stage="resumed", run_id=run_id)
    assert calls[-1].exists()
    resumed = train_model.fn(data, config, stage="resumed", run_id=run_id)
    assert len(calls) == 4  # two epochs before the kill, two after it
    assert resumed.digest == whole.digest
    again = train_model.fn(data, config, stage="resumed", run_id=run_id)
    assert (len(calls), again.digest) == (4, whole.digest)  # to the end: the network is taken as it is
    release(data, {"resumed": config})
    assert not calls[-1].exists()
    assert len(list(calls[-1].parent.glob("*.pt"))) == 1  # the other stage's


def test_what_was_trained_under_another_defence_or_network_is_not_taken(tmp_path, monkeypatch, data, run_id):
    defence, net = "def mine(model, x, y, *, threat, rng):\n    return model(x).square().mean()", tmp_path / "lossy.py"
    net.write_text(f"from torch import nn\n\ndef small():\n    return nn.Linear(201, 2)\n\n{defence}\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = QUICK.model_copy(update={"model": "lossy:small", "defence": "lossy:mine"})
    train_model.fn(data, config, stage="edited", run_id=run_id)
    train_model.fn(data, config, stage="edited", run_id=run_id)
    found = sys.modules["lossy"].__file__
    assert len(list(home_folder("checkpoints").glob("edited-*.pt"))) == 1
    Path(found).write_text(net.read_text().replace("square()", "abs()"))
    train_model.fn(data, config, stage="edited", run_id=run_id)
    assert len(list(home_folder("checkpoints").glob("edited-*.pt"))) == 2
    release(data, {"edited": config})
    assert not list(home_folder("checkpoints").glob("edited-*.pt"))


class Smooth:
    """A defence that is an object."""

    def __call__(self, model, x, y, *, threat, rng):
        return torch.nn.functional.cross_entropy(model(x), y, label_smoothing=0.1)


smooth = Smooth()


def test_a_defence_may_be_an_object_that_is_called(data, run_id):
    config = QUICK.model_copy(update={"defence": f"{__name__}:smooth"})
    assert train_model.fn(data, config, stage="object", run_id=run_id).digest
    (first,) = home_folder("checkpoints").glob("object-*.pt")
    train_model.fn(data, config, stage="object", run_id=run_id)
    assert [*home_folder("checkpoints").glob("object-*.pt")] == [first]


def test_a_model_of_the_wrong_width_is_refused_before_training(data, run_id):
    wrong = QUICK.model_copy(update={"model": "phishing-mlp"})
    with pytest.raises(ModelRejected, match="fails on x"):
        train_model.fn(data, wrong, stage="baseline", run_id=run_id)


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_a_broken_run_is_closed_with_its_stages(home, error, status):
    seen = []

    def broken():
        with open_run("steps", {}) as run_id:
            seen.extend([run_id, open_stage(run_id, "baseline")])
            raise error

    with pytest.raises(error):
        broken()
    assert [client().get_run(run).info.status for run in seen] == [status, status]


def test_the_whole_config_and_versions_stand_in_the_run(run_id):
    assert load_bytes(f"runs:/{run_id}/config.json") == b'{\n  "a": 1\n}'
    tags = client().get_run(run_id).data.tags
    assert tags["version.torch"].startswith("2.")


def test_an_mlflow_server_that_is_down_is_named(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(StoreUnreachable, match=r"no MLflow server answers at http://127.0.0.1:9"), open_run("x", {}):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("REDOUBT_HOME", str(tmp_path / "file"))
    with pytest.raises(StoreUnreachable, match="REDOUBT_HOME"), open_run("x", {}):
        pass
