"""The command line: what it prints, and its exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from flows.__main__ import cli, main
from flows.config import parse
from flows.exits import EXIT, worst
from flows.reattack import Reattacked
from flows.recipes import RECIPES
from tasks.attacks import SUITES
from tasks.errors import WrongInput
from tasks.track import aliases, client

COMMAND = [sys.executable, "-m", "flows"]
ROOT = Path(__file__).parents[2]


def call(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["redoubt", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_yaml(name, monkeypatch, capsys):
    assert call(monkeypatch, "config", name) == 0
    assert parse(yaml.safe_load(capsys.readouterr().out)) == RECIPES[name]()


def test_recipes_are_listed_with_a_line_each(monkeypatch, capsys):
    assert call(monkeypatch, "recipes") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(RECIPES)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["rum"], "Did you mean 'run'"),
        (["config", "digist"], "Did you mean 'digits'"),
        (["config", "digits", "--set", "policy.flor=1"], "unknown key 'policy.flor'. Did you mean 'floor'"),
        (["config", "digits", "--set", "evaluation.threats.0.eps=8"], "eps='8/255'"),
        (["config", "digits", "--set", "evaluation.threats=[]"], "nothing to measure. Write one threat model at least"),
        (
            ["config", "two-kinds", "--set", "evaluation.threats=[{eps: 0.1}, {eps: 0.1}]"],
            "linf_0.1 stands there twice",
        ),
        (["report", "digits", "--card", "--bom"], "Ask for one of them"),
        (["history", "digits", "--html", "--json"], "--html and --json do not go together. Ask for one of them"),
        (["history", "digits", "--csv", "--json"], "--json and --csv do not go together"),
        (["compare", "digits", "1", "2", "--html", "--json"], "--html and --json do not go together"),
        (["findings", "digits", "--replay", "F-1", "--accept", "F-1"], "--accept and --replay do not go together"),
        (["findings", "digits", "--replay", "F-1", "--reopen", "F-1"], "--reopen and --replay do not go together"),
        (["findings", "digits", "--owner", "a", "--until", "2027-01-31"], "--owner and --until without --accept"),
        (["findings", "digits", "--reopen", "F-1", "--owner", "a", "--reason", "b"], "--owner without --accept"),
        (["findings", "digits", "--reason", "b"], "--reason without --accept or --reopen"),
        (["findings", "digits", "--on", "2"], "--on without --replay"),
        (["check", "m", "--dataset", "digits", "--floor", "2"], "not in the range 0<=x<=1"),
        (["config", "digits", "--set", "policy.floor"], "write KEY=VALUE"),
        (["config", "digits", "--set", "name=a/b"], "name:"),
        (["config", "digits", "--set", "evaluation.threats.7.eps=0.1"], "evaluation.threats holds 2 entries"),
        (["config", "digits", "--set", "evaluation.threats.first.eps=0.1"], "evaluation.threats holds 2 entries"),
        (["config", "digits", "--set", "name.first=x"], "name holds no keys"),
        (["config", "digits", "--set", "name=[a"], "no readable YAML"),
        (["config", "nowhere.yaml"], "redoubt config digits > nowhere.yaml"),
        (["config", "mine.toml"], "mine.toml is no recipe. A config is written in YAML: name the file .yaml or .yml"),
        (["config", "mine.json"], "mine.json is no recipe. A config is written in YAML: name the file .yaml or .yml"),
        (["config", "digits", "--set", "training.model=foo"], "training.model: unknown model 'foo'"),
        (["config", "digits", "--set", "evaluation.suite=warmm"], "unknown suite 'warmm'. Did you mean 'warm'?"),
        (
            ["config", "digits", "--set", "evaluation.attacks=[{name: pdg}]"],
            "unknown attack 'pdg'. Did you mean 'pgd'?",
        ),
        (["config", "digits", "--set", "evaluation.attacks=pgd"], "Write a list: [pgd]"),
        (["config", "digits", "--set", "evaluation.confidence=95"], "confidence: 95 is no share. Write 0.95 for 95 %."),
        (["config", "digits", "--set", "evaluation.threats.0.norm=L2"], "unknown norm 'L2'. Did you mean 'l2'?"),
        (["config", "digits", "--set", "evaluation.threats.0.norm=L-inf"], "'L-inf'. Did you mean 'linf'?"),
        (["check", "m", "--dataset", "digits", "--norm", "L1", "--eps", "1"], "unknown norm 'L1'. Did you mean 'l1'?"),
        (["config", "digits", "--set", "evaluation.critical_pairs=[3, 8]"], "Write a list of pairs: [[3, 8]]"),
    ],
)
def test_wrong_input_ends_with_3_and_says_what_to_write(words, hint, monkeypatch, capsys):
    assert call(monkeypatch, *words) == 3
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([], 0), ([0, 0], 0), ([0, 2], 2), ([2, 1, 0], 1), ([1, 2], 1), ([2, 4], 4), ([4, 1, 2], 1)],
)
def test_of_several_reports_a_fail_is_the_worst_and_a_pass_the_best(codes, expected):
    assert worst(codes) == expected


def test_a_report_that_cannot_tell_hides_no_fail_of_another_version(monkeypatch, capsys):
    found = [Reattacked(name="m", version=n, verdict=v, measured=True, says=v) for n, v in enumerate(EXIT, 1)]
    monkeypatch.setattr("flows.ephemeral.prefect_api", lambda: nullcontext(lambda: None))
    monkeypatch.setattr("flows.reattack.reattack_versions", lambda *_, **__: found)
    assert call(monkeypatch, "reattack", "m") == EXIT["fail"]


def test_no_words_at_all_show_the_help(monkeypatch, capsys):
    assert call(monkeypatch) == 3
    assert "Redoubt doubts your models again." in capsys.readouterr().out


def test_one_wrong_threat_model_is_one_complaint(monkeypatch, capsys):
    assert call(monkeypatch, "config", "digits", "--set", "evaluation.threats=[{norm: linf, eps: 8}]") == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_yaml_file_that_is_none_is_named(tmp_path, monkeypatch, capsys):
    for text, hint in (("a: [", "no readable YAML"), ("- 1", "must hold keys"), ("name: x", "is missing")):
        (tmp_path / "c.yaml").write_text(text)
        assert call(monkeypatch, "config", str(tmp_path / "c.yaml")) == 3
        assert hint in capsys.readouterr().err


def test_an_attack_may_be_named_by_its_name_alone(monkeypatch, capsys):
    assert call(monkeypatch, "config", "digits", "--set", "evaluation.attacks=[pgd, {name: fgsm}]") == 0
    found = parse(yaml.safe_load(capsys.readouterr().out)).evaluation.attacks
    assert [attack.name for attack in found] == ["pgd", "fgsm"]


@pytest.mark.parametrize(
    ("words", "goes_on"), [(("run", "digits"), True), (("selftest",), False), (("check", "m"), False)]
)
def test_only_what_has_a_run_is_said_to_go_on_after_ctrl_c(monkeypatch, capsys, words, goes_on):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", stopped)
    assert call(monkeypatch, *words) == 4
    said = capsys.readouterr().err
    assert said.startswith("redoubt: stopped.")
    assert ("the same command goes on from the last checkpoint" in said) == goes_on


def test_a_key_of_a_list_is_found_too():
    values = RECIPES["digits"]().model_dump(mode="json")
    values["evaluation"]["threats"][0]["epps"] = 1
    with pytest.raises(WrongInput, match="Did you mean 'eps'"):
        parse(values)


def test_help_loads_nothing_heavy():
    code = (
        "import sys, flows.__main__; print([m for m in ('torch', 'prefect', 'mlflow', 'pandas') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.strip() == "[]"


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    return kept | {"REDOUBT_HOME": str(home)} | more


@pytest.mark.nightly  # a minute: both databases make their tables
def test_a_run_on_empty_stores_prints_one_object(tmp_path):
    """Everything embedded, as a stranger starts it; the verdict of this data is known."""
    ran = subprocess.run(
        [*COMMAND, "run", "two-kinds", "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(tmp_path / "new"),
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["verdict"] == "pass"
    assert (said["model"], said["version"], said["champion"]) == ("two-kinds", 2, 2)
    assert [stage["split"] for stage in said["stages"]] == ["test", "select", "test"]
    assert Path(said["report"]).is_file()
    assert {"validate", "train/baseline", "attack/baseline/test"} <= set(said["seconds"])
    import sqlite3

    with sqlite3.connect(tmp_path / "new" / "prefect" / "prefect.db") as database:
        names = [row[0] for row in database.execute("select name from task_run where state_type = 'COMPLETED'")]
        assert database.execute("select state_type from flow_run").fetchall() == [("COMPLETED",)]
    assert len(names) == 19, names  # none was lost when the server ended


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        ({"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "no MLflow server answers at http://127.0.0.1:9"),
        ({"REDOUBT_HOME": "/proc/nowhere"}, "cannot write to /proc/nowhere"),
    ],
)
def test_an_unreachable_store_ends_the_run_before_training(tmp_path, more, hint):
    ran = subprocess.run(
        [*COMMAND, "run", "two-kinds"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(tmp_path, **more),
        timeout=120,
    )
    assert ran.returncode == 4
    assert hint in ran.stderr
    assert "train/" not in ran.stderr


@pytest.mark.nightly
def test_ctrl_c_marks_the_run_as_killed_and_keeps_the_checkpoint(home):
    command = [*COMMAND, "run", "two-kinds", "--set", "training.epochs=5000", "--set", "training.schedule=constant"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(home),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    deadline = time.monotonic() + 120
    while not list((home / "checkpoints").glob("baseline-*.pt")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 4, said
    assert "the same command goes on from the last checkpoint" in said
    assert list((home / "checkpoints").glob("baseline-*.pt"))
    runs = client().search_runs([client().get_experiment_by_name("two-kinds").experiment_id])
    assert {run.info.status for run in runs} == {"KILLED"}
    assert len(runs) == 2
    assert aliases("two-kinds") == {}


def test_suites_show_every_attack_with_its_parameters_and_the_digest():
    said = CliRunner().invoke(cli, ["suites"]).output
    for suite in SUITES.values():
        assert f"{suite.name}, digest {suite.digest}" in said
        for attack in suite.attacks:
            for key, value in attack.params.items():
                assert f"{key}={value}" in said
