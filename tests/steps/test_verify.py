"""What a writer of the store can forge, and that verify_model() sees it. Two versions, measured once for this file."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import create_engine, text

from flows.recipes import two_kinds
from tasks import audit
from tasks.data import Data, describe, load
from tasks.decide import decide
from tasks.errors import EvidenceBroken
from tasks.evaluate import champion_report, evaluate_robustness
from tasks.fetch import fetch_version
from tasks.ledger import FINDING, accept_finding, write_findings
from tasks.models import StoredModel
from tasks.posture.appendix import APPENDIX
from tasks.posture.evidence import FILE, ChampionFacts, parse, to_bytes
from tasks.promote import enter, promote
from tasks.recall import compared, known_of, newest_record
from tasks.record import record
from tasks.replay import CORPUS
from tasks.results import BOM, CARD, VERDICT, load_json
from tasks.track import (
    WRITING,
    client,
    load_bytes,
    log_bytes,
    open_run,
    open_stage,
    registered,
    set_alias,
    tag_model,
    tag_version,
)
from tasks.train import train_model
from tasks.verdicts import Policy
from tasks.verify import Verified, lost_heads, verify_model

NAME = "forged"
CONFIG = two_kinds()
QUICK = CONFIG.training.model_copy(update={"epochs": 3})
EVALUATION = CONFIG.evaluation.model_copy(update={"suite": "quick", "samples": 128})
LENIENT = Policy(floor=0.0, clean_floor=0.0, min_samples=100)
STRICT = Policy(floor=0.99)


@pytest.fixture(scope="module")
def store(_migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with version 1, which failed, and version 2, which passed and is champion."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "mlflow").mkdir()
    shutil.copy(_migrated_store, folder / "mlflow" / "mlflow.db")
    before = os.environ.get("REDOUBT_HOME")
    os.environ["REDOUBT_HOME"] = str(folder)
    data = describe("two-kinds", load("two-kinds"))
    for seed, policy in enumerate((STRICT, LENIENT)):
        with open_run(NAME, {}) as run_id:
            training = QUICK.model_copy(update={"seed": seed})
            measured(train_model.fn(data, training, stage="baseline", run_id=run_id), data, policy, run_id)
    yield folder
    os.environ["REDOUBT_HOME"] = str(before)


def measured(model: StoredModel, data: Data, policy: Policy, run_id: str, version: int | None = None) -> str:
    """The digest of the evidence on the model, attacked and decided; registered where it has no number yet."""
    report = evaluate_robustness.fn(model, data, EVALUATION, split="test", run_id=run_id)
    verdict = decide.fn(model, report, policy)
    number = version or enter.fn(NAME, model, report, verdict)
    asked = {"evaluation": EVALUATION.model_dump(mode="json"), "policy": policy.model_dump(mode="json")}
    sha: str = record.fn(NAME, number, model, data, report, verdict, asked, run_id=run_id)
    if version is None:
        promote.fn(NAME, number, model, report, verdict, against=None)
    return sha


@contextmanager
def in_database(store: Path, table: str, values: dict[str, object], where: str) -> Iterator[None]:
    """The rows with other values in MLflow's own database, until the end."""
    engine, columns = create_engine(f"sqlite:///{store}/mlflow/mlflow.db"), ", ".join(values)
    put = f"UPDATE {table} SET {', '.join(f'{column} = :{column}' for column in values)} WHERE {where}"
    with engine.begin() as rows:
        before = rows.execute(text(f"SELECT {columns} FROM {table} WHERE {where}")).one()._asdict()
        rows.execute(text(put), values)
    try:
        yield
    finally:
        with engine.begin() as rows:
            rows.execute(text(put), before)


@contextmanager
def tags_of(number: int, tags: dict[str, str | None]) -> Iterator[None]:
    """The version with exactly these `redoubt.` tags, until the end."""

    def put(wanted: dict[str, str | None]) -> None:
        there = registered(NAME)[number - 1].tags
        for key in {key for key in there if key.startswith("redoubt.")} - set(wanted):
            client().delete_model_version_tag(NAME, str(number), key)
        tag_version(NAME, number, {key: value for key, value in wanted.items() if value is not None})

    before = ours(number)
    put(tags)
    try:
        yield
    finally:
        put(before)


def ours(number: int) -> dict[str, str]:
    """The `redoubt.` tags of a version."""
    return {key: value for key, value in registered(NAME)[number - 1].tags.items() if key.startswith("redoubt.")}


def found(number: int) -> Verified:
    return next(each for each in verify_model(NAME) if each.version == number)


def test_what_nobody_touched_matches(store):
    assert [(each.version, each.mismatches, each.evidences) for each in verify_model(NAME)] == [(1, (), 1), (2, (), 1)]


def test_the_tags_of_a_good_version_on_another_are_found(store):
    with tags_of(1, ours(2)):
        said = found(1).mismatches
        assert any("is the record of version 2" in one for one in said)
        assert any("its evidence is of version 2" in one and "copied to version 1" in one for one in said)
    without = {key: value for key, value in ours(2).items() if not key.startswith("redoubt.record.")}
    with tags_of(1, without):
        assert any("its evidence is of version 2" in one for one in found(1).mismatches)


@pytest.mark.parametrize("column", ["source", "storage_location"])
def test_another_model_behind_the_version_s_address_is_found_and_not_evaluated(store, column):
    bad, good = registered(NAME)
    place = good.source
    if column == "storage_location":
        place = client().get_logged_model(bad.source.removeprefix("models:/")).artifact_location
    other = bad.source if column == "source" else place
    with in_database(store, "model_versions", {column: other}, f"name = '{NAME}' AND version = 2"):
        said = found(2).mismatches
        if column == "storage_location":  # whose bytes are what `models:/NAME/2` gives
            assert any("model:" in one and "the file was changed" in one for one in said)
        else:
            assert any("the registry was changed" in one for one in said)
            with pytest.raises(EvidenceBroken, match="the registry was changed"):
                fetch_version(registered(NAME)[1])
    assert found(2).mismatches == ()


def test_a_champion_that_did_not_pass_or_was_never_measured_is_found(store):
    set_alias(NAME, "champion", 1)
    try:
        assert any("champion" in one and "none says pass" in one for one in found(1).mismatches)
        with tags_of(1, {}):
            assert any("no evidence says that it passed" in one for one in found(1).mismatches)
        assert "is champion, but its newest verdict is fail" in " ".join(known_of(NAME).history.notes)
    finally:
        set_alias(NAME, "champion", 2)
    assert found(1).mismatches == ()


@pytest.mark.nightly
def test_tags_that_were_set_back_are_found_by_the_run_and_by_a_head_kept_elsewhere(store):
    (before,) = found(2).chain
    old = ours(2)
    sha = measured_again(2)
    assert found(2).chain == (sha, before)
    assert found(2).mismatches == ()
    new = ours(2)
    with tags_of(2, old):
        assert any(f"is evidence {sha}, which is in no chain" in one for one in found(2).mismatches)
        assert lost_heads(verify_model(NAME), [before]) == []
        (lost,) = lost_heads(verify_model(NAME), [before, sha])
        assert sha in lost
    assert ours(2) == new


def test_evidence_says_with_what_a_version_was_compared_and_that_an_older_one_had_passed(store):
    (record,) = registered(NAME)[1].records()
    assert load_json(record.run_id, FILE)["champion"] is None
    assert compared(load_json(record.run_id, VERDICT)).startswith("Compared with no champion")
    champion = champion_report.fn(NAME, data_of(), EVALUATION, max_age_days=30, run_id=record.run_id)
    assert (champion.version, champion.evidence) == (2, record.evidence)
    evidence = parse(load_bytes(f"runs:/{record.run_id}/{FILE}"))
    facts = {"version": 2, "evidence": record.evidence, "weights_digest": evidence.weights.digest}
    with_it = evidence.model_copy(update={"champion": ChampionFacts(**facts)})
    assert parse(to_bytes(with_it)).champion.version == 2


def data_of() -> Data:
    return describe("two-kinds", load("two-kinds"))


def test_a_record_that_names_another_run_is_not_obeyed_by_the_gate(store, caplog):
    version = registered(NAME)[1]
    (key,) = (key for key in version.tags if key.startswith("redoubt.record."))
    honest = version.tags[key]
    other = newest_record(registered(NAME)[0]).run_id
    tag_version(NAME, 2, {key: json.dumps(json.loads(honest) | {"run_id": other})})
    try:
        with caplog.at_level("WARNING", "redoubt"):
            champion = champion_report.fn(NAME, data_of(), EVALUATION, max_age_days=30, run_id=other)
    finally:
        tag_version(NAME, 2, {key: honest})
    assert champion.report.stage == "champion-2"  # measured anew
    assert "is not used" in caplog.text


@pytest.mark.parametrize("path", [CARD, BOM, APPENDIX])
def test_a_card_or_bill_that_was_rewritten_is_found(store, path):
    run_id = newest_record(registered(NAME)[1]).run_id
    raw = load_bytes(f"runs:/{run_id}/{path}")
    log_bytes(run_id, raw + b" ", path)
    try:
        (said,) = found(2).mismatches
    finally:
        log_bytes(run_id, raw, path)
    assert path in said


def test_a_number_that_mlflow_shows_otherwise_is_found(store):
    run_id = newest_record(registered(NAME)[1]).run_id
    where = f"run_uuid = '{run_id}' AND key = 'robust_accuracy/linf_0.1'"
    with in_database(store, "latest_metrics", {"value": 0.99}, where):
        (said,) = found(2).mismatches
    assert "MLflow shows robust_accuracy/linf_0.1 0.99" in said


def test_a_finding_or_stored_examples_that_are_gone_or_changed_are_found(store):
    known = known_of(NAME)
    (finding,) = known.findings
    corpus = next(key for key in known.tags if key.startswith(CORPUS))
    for key in (f"{FINDING}{finding.id}", corpus):
        client().delete_registered_model_tag(NAME, key)
        try:
            said = [one for each in verify_model(NAME) for one in each.mismatches]
        finally:
            tag_model(NAME, {key: known.tags[key]})
        assert any("gone" in one and key.rpartition(".")[2] in one for one in said)
    write_findings(NAME, [finding.model_copy(update={"says": "nothing much"})])
    said = [one for each in verify_model(NAME) for one in each.mismatches]
    assert any(finding.id in one and "was changed" in one for one in said)
    write_findings(NAME, [finding])


def test_a_finding_that_somebody_accepts_breaks_nothing_and_is_noted(store):
    known, now = known_of(NAME), datetime.now(UTC)
    until = (now + timedelta(days=9)).date().isoformat()
    accept_finding(known, known.findings[0].id, owner="the team", expires=until, reason="known", now=now)
    try:
        looked = verify_model(NAME)
    finally:
        write_findings(NAME, known.findings)
    assert all(not each.mismatches for each in looked)
    assert any("by hand by the team" in note for each in looked for note in each.notes)


def test_a_moment_in_the_future_is_refused(store):
    version = registered(NAME)[1]
    record = newest_record(version)
    later = record.model_copy(update={"measured_at": "2999-01-01T00:00:00+00:00"})
    tags = {f"redoubt.record.{record.key}": later.model_dump_json()}
    with pytest.raises(EvidenceBroken, match="in the future"):
        replace(version, tags=tags).records()


def pem_files(folder: Path, name: str) -> tuple[Path, Path]:
    """A new private key and its public key."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def measured_again(number: int, policy: Policy = LENIENT) -> str:
    """The digest of new evidence on a version."""
    with open_run(NAME, {}) as run_id:
        stored = fetch_version(registered(NAME)[number - 1], run_id=open_stage(run_id, "again"))
        return measured(stored, data_of(), policy, run_id, number)


def test_a_card_that_is_gone_is_found_though_its_run_is_called_stopped(store):
    run_id = newest_record(registered(NAME)[0]).run_id
    card = Path(client().get_run(run_id).info.artifact_uri.removeprefix("file://")) / CARD
    kept = card.read_bytes()
    card.unlink()
    client().set_terminated(run_id, "KILLED")
    try:
        said = [one for each in verify_model(NAME) for one in each.mismatches]
    finally:
        card.write_bytes(kept)
        client().set_terminated(run_id, "FINISHED")
    assert any(run_id in one and CARD in one for one in said)


@pytest.mark.parametrize("written", ["nothing", "some", "all"])
def test_an_evaluation_that_was_stopped_as_it_wrote_is_noted_and_hides_nothing_else(store, monkeypatch, written):
    module = sys.modules[record.fn.__module__]

    def stops(name: str, tags: dict[str, str]) -> None:
        if WRITING not in tags:
            some = [*tags.items()][: {"nothing": 0, "some": 1, "all": None}[written]]
            tag_model(name, dict(some))
            raise KeyboardInterrupt
        tag_model(name, tags)

    with monkeypatch.context() as patched:
        patched.setattr(module, "tag_model", stops)
        with pytest.raises(KeyboardInterrupt):
            measured_again(2, STRICT)
    try:
        looked = verify_model(NAME)
        assert all(not each.mismatches for each in looked)
        assert any("was stopped as it wrote (run" in note for each in looked for note in each.notes)
        told = known_of(NAME).tags[WRITING]
        forged = {  # by whoever may write tags: what is no evidence, or follows none, excuses nothing
            "another digest": f"{told.partition(':')[0]}:{'0' * 64}",
            "no run": f"{'0' * 32}:{told[33:]}",
            "an old one": f"{newest_record(registered(NAME)[0]).run_id}:{registered(NAME)[0].tags['redoubt.evidence']}",
        }
        for what, tag in forged.items():
            tag_model(NAME, {WRITING: tag})
            said = [one for each in verify_model(NAME) for one in each.mismatches]
            assert bool(said) == (written != "nothing"), what
        tag_model(NAME, {WRITING: told})
        known, newest = known_of(NAME), parse(load_bytes(f"runs:/{newest_record(registered(NAME)[1]).run_id}/{FILE}"))
        assert audit._stopped(known, newest, None).run_id == told[:32]
        assert audit._stopped(replace(known, name="other"), newest, None) is None  # evidence of another model
        client().set_tag(told[:32], "redoubt.evidence", told[33:])  # that was recorded, and the version's tag set back
        assert audit._stopped(known, newest, None) is None
        client().delete_tag(told[:32], "redoubt.evidence")
        (finding, *_) = known_of(NAME).findings
        write_findings(NAME, [finding.model_copy(update={"says": "nothing much"})])
        assert any(finding.id in one for each in verify_model(NAME) for one in each.mismatches)
        write_findings(NAME, [finding])
    finally:
        measured_again(2)
    assert all(not each.mismatches for each in verify_model(NAME))


@pytest.mark.nightly
def test_a_chain_is_signed_from_its_first_signature_on(store, tmp_path, monkeypatch):
    private, public = pem_files(tmp_path, "ours")
    _, other = pem_files(tmp_path, "theirs")
    assert all("is not signed." in one for one in verify_model(NAME, 2, public_key=public)[0].mismatches)
    monkeypatch.setenv("REDOUBT_SIGNING_KEY", str(private))
    measured_again(2)
    newest = max(registered(NAME)[1].records(), key=lambda record: record.measured_at)
    assert load_json(newest.run_id, FILE)["recalled"] == []  # no result without our mark is signed
    (looked,) = verify_model(NAME, 2, public_key=public)
    assert (looked.mismatches, looked.signed) == ((), 1)
    assert any("bear no signature; the signed ones name them" in note for note in looked.notes)
    assert verify_model(NAME, 2)[0].signed == 1
    (looked,) = verify_model(NAME, 2, public_key=other)
    assert (looked.signed, any("another key" in one for one in looked.mismatches)) == (0, True)
    monkeypatch.delenv("REDOUBT_SIGNING_KEY")
    measured_again(2)
    for key in (None, public):
        (said,) = verify_model(NAME, 2, public_key=key)[0].mismatches
        assert "is not signed, though older evidence" in said
