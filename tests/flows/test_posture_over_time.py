"""Versions over time on real stores: measured again, compared, verified, reproduced; nothing is computed twice."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from flows.__main__ import main
from flows.asked import already, asked, like_before
from flows.config import EvaluateConfig
from flows.evaluate import evaluate_model
from flows.pipeline import posture_pipeline
from flows.reattack import reattack_versions
from flows.recipes import two_kinds
from tasks.attacks import SUITES
from tasks.errors import EvidenceBroken, ModelRejected, PartRefused, WrongInput
from tasks.fetch import fetch_version, network_of
from tasks.ledger import write_findings
from tasks.metrics import cell
from tasks.models import build
from tasks.posture.evidence import FILE
from tasks.posture.finding import Observation
from tasks.posture.findings import advance
from tasks.posture.mending import alike
from tasks.recall import known_of, newest_record
from tasks.reproduce import reproduce_run
from tasks.results import load_adversarial, load_json
from tasks.track import aliases, client, load_bytes, registered, tag_version
from tasks.verify import verify_model

pytestmark = pytest.mark.server
NAME = "two-kinds"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(_migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for this file: a store with the two versions that the recipe makes, weak and hardened."""
    folder = tmp_path_factory.mktemp("posture")
    (folder / "mlflow").mkdir()
    shutil.copy(_migrated_store, folder / "mlflow" / "mlflow.db")
    before = os.environ.get("REDOUBT_HOME")
    os.environ["REDOUBT_HOME"] = str(folder)
    yield folder
    os.environ["REDOUBT_HOME"] = str(before)


@pytest.fixture(scope="module")
def story(prefect_server, home):
    return posture_pipeline(two_kinds())


def call(capsys, *words: str) -> tuple[int, str, str]:
    before, sys.argv = sys.argv, ["redoubt", *words]
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        sys.argv = before
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


def artifact(uri_path: str, run_id: str) -> Path:
    root = client().get_run(run_id).info.artifact_uri.removeprefix("file://")
    return Path(root) / uri_path


def test_each_version_carries_its_record_and_evidence_that_holds(story, home):
    versions = registered(NAME)
    assert [version.number for version in versions] == [1, 2]
    for version, chapter in zip(versions, story.chapters, strict=True):
        (record,) = version.records()
        assert (record.verdict, record.run_id) == (chapter.verdict.outcome, chapter.run_id)
        assert record.threats[0].robust == chapter.report.threats[0].robust
        assert record.clean == chapter.report.clean
        assert version.tags["redoubt.evidence"] == record.evidence
        evidence = load_json(record.run_id, FILE)
        assert evidence["weights"]["digest"] == chapter.report.weights_digest
        assert {"report.json", "verdict.json", "weights/model.safetensors", "evaluation.json"} <= set(
            evidence["artifacts"]
        )
        assert any(path.startswith("model:") and path.endswith(".pt2") for path in evidence["artifacts"])
    assert [record.key for version in versions for record in version.records()] == [versions[0].records()[0].key] * 2
    assert all(not found.mismatches and found.evidences == 1 for found in verify_model(NAME))


def test_what_fooled_version_1_is_kept_and_replayed_on_version_2(story, home):
    first, second = (newest_record(version) for version in registered(NAME))
    assert first.threats[0].replay is None
    replay = load_json(second.run_id, "replay.json")["linf_0.1"]
    fooled = load_adversarial(first.run_id, "linf_0.1")
    assert replay["of_version"]["1"][1] == len(fooled["rows"])
    assert second.threats[0].replay.n == len(fooled["rows"])
    assert second.threats[0].replay.value > 0.9  # hardened for just these
    checks = load_json(second.run_id, "verdict.json")["verdict"]["checks"]
    assert any(check["name"].startswith("stored examples") for check in checks)
    tag = next(value for key, value in known_of(NAME).tags.items() if key.startswith("redoubt.corpus."))
    assert json.loads(tag)["examples"] >= len(fooled["rows"])


def test_the_weakness_of_version_1_is_verified_by_version_2_and_closed_by_its_promotion(story, home):
    (finding,) = known_of(NAME).findings
    assert (finding.state, finding.first_version, finding.verified_version) == ("verified", 1, 2)
    assert finding.closed_at is not None
    assert "AML.T0043.000" in finding.ids
    assert finding.cost.gradients > 0
    arrays = np.load(io.BytesIO(load_bytes(finding.reproducer.uri)), allow_pickle=False)
    assert 0 < len(arrays["rows"]) <= 16
    metrics = client().get_run(story.chapters[-1].run_id).data.metrics
    assert metrics["findings/verified"] == 1
    assert metrics["findings/patch_latency_days"] < 1


def test_a_finding_s_one_command_shows_it_on_the_weak_version_and_not_on_the_hardened(story, home, capsys):
    (finding,) = known_of(NAME).findings
    words = finding.reproducer.command.split()
    assert words[0] == "redoubt"
    code, said, _ = call(capsys, *words[1:])
    assert (code, "16 of 16 examples still work on version 1" in said) == (1, True)
    code, said, _ = call(capsys, "findings", NAME, "--replay", finding.id, "--on", "champion")
    assert code == 0, said


def test_an_unchanged_evaluation_comes_from_the_store(story, home, capsys, monkeypatch):
    runs = len(client().search_runs([client().get_experiment_by_name(NAME).experiment_id]))
    code, said, _ = call(capsys, "evaluate", f"models:/{NAME}/1")
    assert (code, said.startswith("fail: measured")) == (1, True)
    code, said, _ = call(capsys, "evaluate", f"models:/{NAME}@champion", "--json")
    assert (code, json.loads(said)["version"]) == (0, 2)
    assert len(client().search_runs([client().get_experiment_by_name(NAME).experiment_id])) == runs


def test_the_same_again_is_judged_from_the_cells_without_one_attack(story, home, monkeypatch):
    def never(*_, **__):
        raise AssertionError("an attack ran")

    monkeypatch.setattr(sys.modules[cell.__name__].Engine, "run", never)
    config = like_before(registered(NAME)[0])
    again = evaluate_model(config)
    assert again.chapters[0].report.threats == story.chapters[0].report.threats
    (found,) = verify_model(NAME, 1)
    assert found.mismatches == ()
    assert found.evidences == 2  # the chain has grown by one link
    assert load_json(again.chapters[0].run_id, FILE)["previous"] == load_sha(story.chapters[0].run_id)


def load_sha(run_id: str) -> str:
    import hashlib

    return hashlib.sha256(load_bytes(f"runs:/{run_id}/{FILE}")).hexdigest()


def test_a_run_is_reproduced_from_its_evidence_alone(story, home, capsys):
    found = reproduce_run(story.chapters[1].run_id)
    assert found.same
    assert found.samples == 2048
    code, said, _ = call(capsys, "reproduce", story.chapters[0].run_id)
    assert (code, "the very same of 2048 samples were fooled" in said) == (0, True)
    with pytest.raises(WrongInput, match="keeps no evidence"):
        reproduce_run(story.run_id)


@pytest.mark.parametrize(
    "path", ["report.json", "outcomes/linf_0.1.json", "adversarial/linf_0.1.npz", "verdict.json", FILE, "model.json"]
)
def test_one_flipped_byte_is_found_and_named(story, home, capsys, path):
    file = artifact(path, story.chapters[1].run_id)
    raw = file.read_bytes()
    place = len(raw) // 2
    file.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
    try:
        code, said, _ = call(capsys, "verify", NAME, "--version", "2")
    finally:
        file.write_bytes(raw)
    first = next(line for line in said.splitlines() if "does not match" in line)
    assert code == 1
    assert (path if path != FILE else "evidence") in first
    assert call(capsys, "verify", NAME, "--version", "2")[0] == 0


@pytest.mark.parametrize("path", ["report.html", "story.json"])
def test_a_page_or_story_that_was_rewritten_is_found(story, home, path):
    file = artifact(path, story.run_id)
    raw = file.read_bytes()
    file.write_bytes(raw.replace(b"fail", b"pass"))
    try:
        said = [one for each in verify_model(NAME) for one in each.mismatches]
    finally:
        file.write_bytes(raw)
    assert any(path in one and "the file was changed" in one for one in said)


@pytest.mark.parametrize(
    ("path", "words"), [("report.html", ()), ("model-card.md", ("--card",)), ("ml-bom.json", ("--bom",))]
)
def test_what_was_rewritten_is_not_shown(story, home, capsys, path, words):
    run_id = story.run_id if path == "report.html" else story.chapters[1].run_id
    file = artifact(path, run_id)
    raw = file.read_bytes()
    file.write_bytes(raw + b" ")
    try:
        code, _, told = call(capsys, "report", NAME, *words)
    finally:
        file.write_bytes(raw)
    assert (code, f"{path} of run {run_id} was changed after it was written" in told) == (4, True), told
    assert call(capsys, "report", NAME, *words)[0] == 0


def test_a_flipped_byte_in_the_served_graph_and_in_the_store_of_cells_is_found(story, home, capsys):
    graph = next((home / "mlflow").rglob("*.pt2"))
    stored = next((home / "cells").rglob("*.safetensors"))
    for file, said_where in ((graph, ".pt2"), (stored, stored.name[:16])):
        raw = file.read_bytes()
        file.write_bytes(raw[:-20] + bytes([raw[-20] ^ 1]) + raw[-19:])
        try:
            code, said, _ = call(capsys, "verify", NAME)
        finally:
            file.write_bytes(raw)
        assert code == 1
        assert said_where in said
    assert call(capsys, "verify", NAME)[0] == 0


@pytest.mark.parametrize("tag", ["redoubt.verdict", "redoubt.robust_accuracy.linf_0.1", "redoubt.suite_digest"])
def test_a_tag_that_was_made_kinder_is_found(story, home, capsys, tag):
    before = registered(NAME)[0].tags[tag]
    tag_version(NAME, 1, {tag: "pass" if tag.endswith("verdict") else "0.9999"})
    try:
        code, said, _ = call(capsys, "verify", NAME)
    finally:
        tag_version(NAME, 1, {tag: before})
    assert code == 1
    assert tag in said


def test_a_record_or_a_finding_that_is_none_any_more_is_named(story, home, capsys):
    (key,) = (key for key in registered(NAME)[0].tags if key.startswith("redoubt.record."))
    before = registered(NAME)[0].tags[key]
    tag_version(NAME, 1, {key: before.replace('"clean"', '"cleaner"')})
    try:
        code, _, err = call(capsys, "history", NAME)
    finally:
        tag_version(NAME, 1, {key: before})
    assert (code, key in err) == (4, True)
    assert call(capsys, "history", NAME)[0] == 0


def test_a_stronger_suite_makes_a_measurement_and_no_regression(story, home, capsys, monkeypatch):
    stronger = SUITES["quick"].model_copy(update={"name": "quick"})
    results = reattack_versions(NAME, "all", suite="quick")
    assert [(result.version, result.measured) for result in results] == [(1, True), (2, True)]
    assert [result.measured for result in reattack_versions(NAME, "all", suite="quick")] == [False, False]
    history = known_of(NAME).history
    assert {group.newest.suite for group in history.groups} == {"standard", stronger.name}
    assert not any(change.kind == "regression" for change in history.changes)
    code, said, _ = call(capsys, "history", NAME, "--json")
    assert code == 0
    assert len(json.loads(said)["groups"]) == 2
    code, said, _ = call(capsys, "history", NAME, "--csv")
    rows = list(csv.DictReader(io.StringIO(said)))
    assert len(rows) == 4
    assert {row["suite"] for row in rows} == {"standard", "quick"}


def test_history_compare_report_and_explain_answer(story, home, capsys):
    for words, said in (
        (("history", NAME), "two-kinds"),
        (("compare", NAME, "1", "champion"), "repaired"),
        (("report", f"{NAME}@champion"), "pass"),
        (("report", NAME, "--card"), "Trained on: two-kinds, split train, digest "),
        (("report", NAME, "--bom"), "CycloneDX"),
        (("explain", story.run_id), "floor"),
        (("explain", f"{NAME}@champion"), "floor"),
        (("findings", NAME), "F-"),
        (("transfer", NAME), "exploits of"),
    ):
        code, out, err = call(capsys, *words)
        assert code == 0, err
        assert said in out, words
    for words in (("history", NAME, "--html"), ("compare", NAME, "1", "2", "--html")):
        code, out, _ = call(capsys, *words)
        page = Path(out.split(": ", 1)[1].strip()).read_text()
        assert page.lower().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("history", "two-kind"), "Did you mean 'two-kinds'"),
        (("compare", NAME, "1", "7"), "has no version 7"),
        (("report", f"{NAME}@nobody"), "is no version"),
        (("explain", "nothing"), "no run"),
        (("verify", NAME, "--version", "9"), "has no version 9"),
        (("reproduce", "nothing"), "no run"),
        (("findings", NAME, "--replay", "F-0"), "has no finding"),
        (("findings", NAME, "--accept", "F-0"), "has no finding"),
        (("reattack", NAME, "--versions", "one"), "live, all, or numbers"),
        (("evaluate", "models:/nobody/1"), "not registered"),
        (("evaluate", f"models:/{NAME}/1", "--name", "other"), f"Write name: {NAME}"),
        (("history", "two'kinds"), "is no name of a registered model"),
        (("evaluate", "nowhere.onnx", "--dataset", NAME), "does not exist. Name an ONNX file"),
        (("evaluate", f"{NAME}@champion"), f"For the registered model write models:/{NAME}@champion"),
        (("evaluate", NAME, "--eps", "0.1"), f"For the registered model write models:/{NAME}@ch"),
        (("evaluate", f"models:/{NAME}/1", "--norm", "l2"), "--norm l2 needs a radius. Write --eps as well"),
        (("evaluate", f"models:/{NAME}/1", "--norm", "l7"), "--norm l7 is unknown. Known: linf"),
        (("evaluate", f"models:/{NAME}/1", "--dataset", "two-kind", "--eps", "0.1"), "Did you mean 'two-kinds'"),
        (("evaluate", f"models:/{NAME}/1", "--suite", "quik"), "evaluation: unknown suite 'quik'"),
        (("reattack", NAME, "--like", "9"), "has no version 9"),
    ],
)
def test_wrong_words_end_with_3_and_say_what_to_write(story, home, capsys, words, hint):
    code, _, err = call(capsys, *words)
    assert code == 3, err
    assert hint in err


@pytest.mark.nightly
def test_a_model_that_others_registered_is_evaluated_and_one_with_a_pickle_after_consent(story, home, monkeypatch):
    import mlflow
    import mlflow.pytorch

    client()
    mlflow.set_experiment(NAME)
    network, x = build("two-kinds-mlp", seed=5).eval(), torch.zeros(2, 201)
    with mlflow.start_run():
        kept = mlflow.pytorch.log_model(
            network,
            name="theirs",
            input_example=x.numpy(),
            serialization_format="pt2",
            pip_requirements=["torch"],
            registered_model_name=NAME,
        )
        assert kept.registered_model_version == 3
        config = like_before(registered(NAME)[2])
    story = evaluate_model(config)
    assert story.version == 3
    assert story.verdict.outcome == "fail"  # it was never trained
    (record,) = registered(NAME)[2].records()
    assert record.key in {r.key for r in registered(NAME)[0].records()}
    metrics = client().get_logged_model(kept.model_id).metrics
    assert {metric.key for metric in metrics} >= {"clean_accuracy", "robust_accuracy/linf_0.1"}
    assert next(m for m in metrics if m.key == "clean_accuracy").dataset_digest == record.data_digest
    assert verify_model(NAME, 3)[0].mismatches == ()
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            network,
            name="pickled",
            serialization_format="pickle",
            pip_requirements=["torch"],
            registered_model_name=NAME,
        )
    with pytest.raises(ModelRejected, match=r"pt2.* --consent sha256:[0-9a-f]{64}") as refused:
        evaluate_model(like_before(registered(NAME)[3]))
    assert registered(NAME)[3].records() == []
    monkeypatch.setenv("REDOUBT_CONSENT", re.search(r"sha256:\w{64}", str(refused.value))[0])
    assert evaluate_model(like_before(registered(NAME)[3])).chapters[0].report.clean == story.chapters[0].report.clean
    monkeypatch.delenv("REDOUBT_CONSENT")  # from here on only the graph is used
    assert network_of(fetch_version(registered(NAME)[3]))(x).shape == (2, 2)


@pytest.mark.nightly
def test_an_onnx_file_and_a_registered_one_are_evaluated_as_the_torch_model_is(story, home, tmp_path, capsys):
    import mlflow
    import mlflow.onnx
    import onnx

    hardened = fetch_version(registered(NAME)[1])
    weights = [p.detach().numpy() for p in network_of(hardened).parameters()]
    graph = as_onnx(weights)
    onnx.save_model(graph, tmp_path / "net.onnx")
    words = ("evaluate", str(tmp_path / "net.onnx"), "--like", NAME, "--samples", "300", "--json")
    code, said, err = call(capsys, *words)
    assert code == 0, err
    of_file = json.loads(said)["stages"][0]["robust_accuracy"]["linf_0.1"]
    client()
    mlflow.set_experiment(NAME)
    with mlflow.start_run():
        mlflow.onnx.log_model(graph, name="onnx", registered_model_name="from elsewhere")  # its weights lie beside it
    code, said, err = call(capsys, "evaluate", "models:/from elsewhere/1", "--like", NAME, "--samples", "300", "--json")
    assert code == 0, err
    code, _, err = call(capsys, "evaluate", f"models:/{NAME}/2", "--samples", "300", "--json")
    assert code == 0, err
    assert json.loads(said)["stages"][0]["robust_accuracy"]["linf_0.1"] == of_file
    theirs = newest_record(registered("from elsewhere")[0]).threats[0].robust
    assert theirs == newest_record(registered(NAME)[1]).threats[0].robust
    assert verify_model("from elsewhere")[0].mismatches == ()


def as_onnx(weights: list[np.ndarray]) -> object:
    """A two-layer network as an ONNX model, built by hand."""
    from onnx import TensorProto, helper, numpy_helper

    names = ("w1", "b1", "w2", "b2")
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"], transB=1),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])]
        for name, width in (("x", weights[0].shape[1]), ("logits", weights[2].shape[0]))
    ]
    kept = [numpy_helper.from_array(array, name) for array, name in zip(weights, names, strict=True)]
    graph = helper.make_graph(nodes, "net", *ends, initializer=kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_what_a_function_returns_is_evaluated_and_reproduced(story, home, monkeypatch):
    config = asked(
        "tasks.models.networks:two_kinds_mlp",
        dataset=NAME,
        like=None,
        name=None,
        norm="linf",
        eps="0.1",
        suite="quick",
        samples=100,
        seed=None,
        floor=0.5,
        changes=(),
    )
    story = evaluate_model(config)
    assert story.version is None
    assert story.chapters[0].report.clean.n == 100
    with pytest.raises(PartRefused, match="REDOUBT_PARTS"):  # the run says what builds it: no word of the user's
        reproduce_run(story.chapters[0].run_id)
    monkeypatch.setenv("REDOUBT_PARTS", "tasks.models.networks")
    assert reproduce_run(story.chapters[0].run_id).same


def test_a_version_whose_weights_were_exchanged_is_not_measured(story, home):
    number = registered(NAME)[0]
    tag_version(NAME, 1, {"redoubt.weights_digest": "0" * 16})
    try:
        with pytest.raises(EvidenceBroken, match="was changed"):
            evaluate_model(like_before(number))
    finally:
        tag_version(NAME, 1, {"redoubt.weights_digest": number.tags["redoubt.weights_digest"]})


def test_already_knows_policy_and_suite(story, home):
    version = registered(NAME)[0]
    config = like_before(version)
    assert already(version, config) is not None
    other = config.model_copy(update={"policy": config.policy.model_copy(update={"floor": 0.1})})
    assert already(version, other) is None
    assert aliases(NAME)["champion"] == 2


def like(number: int, **evaluation: object) -> EvaluateConfig:
    """How the version was evaluated the first time, some of it otherwise."""
    config = two_kinds().as_evaluation(number)
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update=evaluation)})


def test_a_flipped_pair_becomes_a_finding_with_the_inputs_that_flipped(story, home, capsys):
    flipped = evaluate_model(like(1, critical_pairs=((0, 1),), samples=300))
    (pair,) = flipped.chapters[0].report.threats[0].pairs
    finding = next(finding for finding in known_of(NAME).findings if finding.kind == "pair")
    assert (finding.subject, finding.state) == ("0 taken for 1", "open")
    kept = load_adversarial(flipped.chapters[0].run_id, "linf_0.1-0-to-1")
    assert len(kept["rows"]) == len(pair.rows) > 0
    assert set(kept["y"]) == {0}
    assert np.abs(kept["x_adv"] - kept["x"]).max() <= 0.1 + 1e-6
    code, said, _ = call(capsys, *finding.reproducer.command.split()[1:])
    assert (code, "16 of 16 examples still work" in said) == (1, True)


def test_a_warm_start_is_at_least_as_strong_and_compared_with_its_like_only(story, home):
    chapter = evaluate_model(like(1, warm=True)).chapters[0]
    warm = chapter.report
    assert warm.warm
    assert reproduce_run(chapter.run_id).same  # from the examples that it began at, which its run keeps
    assert warm.threats[0].robust.value <= story.chapters[0].report.threats[0].robust.value
    assert warm.comparable_with(story.chapters[0].report) == "start"
    keys = {record.key: record.warm for record in registered(NAME)[0].records()}
    assert set(keys.values()) == {"", warm.warm}


def test_signed_evidence_is_verified_by_its_key_and_by_no_other(story, home, capsys, tmp_path, monkeypatch):
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    for name in ("ours", "theirs"):
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        (tmp_path / f"{name}.pem").write_bytes(pem)
        public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pub").write_bytes(public)
    monkeypatch.setenv("REDOUBT_SIGNING_KEY", str(tmp_path / "ours.pem"))
    evaluate_model(like(2, samples=200))
    words = ("verify", NAME, "--version", "2", "--public-key")
    code, said, _ = call(capsys, *words, str(tmp_path / "ours.pub"))
    wrong = [line for line in said.splitlines() if "does not match" in line and "champion" not in line]
    assert wrong == []  # the first links were made without the key, and are named by the signed one
    assert f"the oldest {unsigned_links(said)} of its evidence bear no signature" in said
    code, said, _ = call(capsys, *words, str(tmp_path / "theirs.pub"))
    assert code == 1
    assert "another key" in said or "signature" in said


def unsigned_links(said: str) -> int:
    """How many links of the version's chain bear no signature: all but the newest."""
    links = int(said.split("(")[1].split()[0])
    assert f"{links} links of evidence" in said
    assert ", 1 signed" in said
    return links - 1


def test_an_overdue_finding_fails_a_good_version_until_somebody_answers_for_it(story, home, capsys):
    seen = Observation(
        name=NAME,
        kind="robustness",
        threat="linf_0.2",  # which no later evaluation looks at
        label="L-inf 0.2",
        data=NAME,
        version=1,
        run_id=story.run_id,
        at="2020-01-01T00:00:00+00:00",
        fresh="fail",
        sound=True,
        says="too low",
    )
    finding = advance(None, seen)
    write_findings(NAME, [finding])
    config = two_kinds().as_evaluation(2)
    refused = evaluate_model(config).verdict
    assert (refused.outcome, finding.id in refused.reasons[0]) == ("fail", True)
    until = (datetime.now(UTC) + timedelta(days=30)).date().isoformat()
    words = ("findings", NAME, "--accept", finding.id, "--owner", "the team", "--until", until)
    assert call(capsys, *words)[0] == 3  # no reason given
    code, said, _ = call(capsys, *words, "--reason", "not reachable from outside")
    assert (code, "accepted" in said) == (0, True)
    assert evaluate_model(config).verdict.outcome == "pass"


SLOW = """
import time


def slow(model, x, y, *, threat, rng):
    \"\"\"Finds nothing, and takes its time.\"\"\"
    time.sleep(1)
    return x
"""


@pytest.mark.nightly
def test_a_killed_evaluation_goes_on_where_it_stood(story, home, tmp_path):
    (tmp_path / "waits.py").write_text(SLOW)
    words = [
        sys.executable,
        "-m",
        "flows",
        "evaluate",
        f"models:/{NAME}/1",
        "--suite",
        "quick",
        "--samples",
        "1100",
        "--json",
    ]
    words += ["--set", "evaluation.attacks=[{name: 'waits:slow'}]"]
    before = set((home / "cells").rglob("*.safetensors"))
    environment = os.environ | {"REDOUBT_HOME": str(home), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    killed = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    while not (done := set((home / "cells").rglob("*.safetensors")) - before):
        assert killed.poll() is None
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    times = {file: file.stat().st_mtime_ns for file in done}
    again = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 1, again.stderr
    assert {file: file.stat().st_mtime_ns for file in times} == times
    cells = set((home / "cells").rglob("*.safetensors")) - before
    assert len(done) < len(cells)
    assert verify_model(NAME, 1)[0].mismatches == ()


@pytest.mark.parametrize(
    ("missed", "suite", "closed"), [(0.99, "standard", False), (0.9, "quick", False), (0.9, "standard", True)]
)
def test_a_lower_floor_or_a_suite_to_look_closes_no_finding(story, home, missed, suite, closed):
    config = two_kinds().as_evaluation(2)  # which asks for a floor of 0.9, and passes
    finding = next(f for f in known_of(NAME).findings if (f.kind, f.threat) == ("robustness", "linf_0.1"))
    gone = {"verified_version": None, "verified_at": None, "closed_at": None, "last_version": 2}
    write_findings(
        NAME,
        [finding.model_copy(update={"floor": missed, "state": "open", "fresh": "fail", "replay": "fail"} | gone)],
    )
    attacks = config.evaluation.model_copy(update={"suite": suite})
    evaluate_model(config.model_copy(update={"evaluation": attacks}))
    assert (next(f for f in known_of(NAME).findings if f.id == finding.id).state == "verified") == closed


def test_versions_that_were_measured_otherwise_are_measured_alike_by_the_commands_that_are_named(story, home, capsys):
    wider = ("--set", "evaluation.threats=[{norm: linf, eps: 0.1}, {norm: l2, eps: 0.1}]")
    quick = ("--suite", "quick", "--samples", "150")
    code, _, err = call(capsys, "evaluate", f"models:/{NAME}/2", *quick, *wider)
    assert code in (0, 1, 2), err
    before = known_of(NAME).history
    assert 1 in before.unmeasured
    assert before.command == f"redoubt reattack {NAME} --versions {','.join(map(str, before.unmeasured))} --like 2"
    assert call(capsys, *before.command.split()[1:])[0] in (0, 1, 2)
    assert known_of(NAME).history.unmeasured == ()

    other = ("--set", "evaluation.threats=[{norm: linf, eps: 0.2}]")
    assert call(capsys, "evaluate", f"models:/{NAME}/2", *quick, *other)[0] in (0, 1, 2)
    command = alike(*(newest_record(version) for version in registered(NAME)[:2]))
    assert command == f"redoubt evaluate models:/{NAME}/1 --like models:/{NAME}/2"
    assert call(capsys, *command.split()[1:])[0] in (0, 1, 2)
    assert 1 not in known_of(NAME).history.unmeasured
