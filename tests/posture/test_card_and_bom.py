import json
import re
import shlex
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from packageurl import PackageURL

from tasks.errors import EvidenceBroken
from tasks.posture import Record, ThreatRecord
from tasks.posture.bom import ml_bom
from tasks.posture.card import code, model_card, plain
from tasks.posture.coverage import coverage
from tasks.posture.evidence import (
    CodeFacts,
    DataFacts,
    Evidence,
    SuiteFacts,
    VerdictFacts,
    WeightsFacts,
    digest,
    to_bytes,
)
from tasks.posture.finding import Observation
from tasks.posture.findings import advance
from tasks.statistics import Share

ROOT = Path(__file__).parents[2]
AT = "2026-01-31T12:00:00+00:00"
PACKAGES = {
    "torch": "2.13.0+cpu",
    "Great_Expectations": "1.24.1",
    "python": "3.11.9",
    "device": "cpu",
    "redoubt": "0.1",
}


def under(name: str, label: str, robust: int, **facts: Any) -> ThreatRecord:
    of = {"digest": "b" * 16, "sound": True, "floor": 0.5, "seconds": 1.5, "forward_samples": 10, "backward_samples": 5}
    return ThreatRecord(name=name, label=label, robust=Share.of(robust, 500), **of | facts)


def record(**facts: Any) -> Record:
    of: dict[str, Any] = {"name": "digits", "version": 3, "stage": "baseline", "run_id": "5f0c", "measured_at": AT}
    of |= {"verdict": "fail", "reason": "robust accuracy under L2 1 is below the floor of 50%", "data": "digits"}
    of |= {"data_digest": "d" * 16, "split": "test", "samples": 500, "seed": 7, "seeds": 1, "suite": "standard"}
    of |= {"suite_digest": "5" * 16, "weights_digest": "a" * 16, "code": "c" * 16, "confidence": 0.95}
    of |= {"environment": {"torch": "2.13.0", "device": "cpu"}, "clean": Share.of(489, 500)}
    of |= {"threats": (under("linf_0.15", "L-inf 0.15", 320), under("l2_1", "L2 1", 115))}
    return Record(**of | facts)


def evidence(**facts: Any) -> Evidence:
    sha = "f" * 64
    of: dict[str, Any] = {"name": "digits", "version": 3, "stage": "baseline", "run_id": "5f0c", "made_at": AT}
    of |= {"data": DataFacts(name="digits", digest="d" * 16, split="test", rows=sha)}
    of |= {"code": CodeFacts(digest="c" * 16, commit="0123abc", version="0.1.0"), "environment": {"device": "cpu"}}
    of |= {"weights": WeightsFacts(model="digits-cnn", kind="weights", uri="runs:/5f0c/weights/m", digest="a" * 16)}
    of |= {"config": {}, "suite": SuiteFacts(name="standard", digest="5" * 16, attacks=({"name": "pgd"},)), "seed": 7}
    of |= {"threats": {"linf_0.15": "b" * 16}, "outcomes": {"linf_0.15": sha}}
    of |= {"verdict": VerdictFacts(outcome="fail", reasons=("too low",))}
    of |= {"artifacts": {"report.json": sha, "weights/m": "a" * 16 + "0" * 48}}
    return Evidence(**of | facts)


@dataclass(frozen=True)
class Found:
    """A weakness as a card is handed it."""

    state: str = "open"
    id: str = "F-00000001"
    label: str = "L2 1"
    says: str = "23.0% withstood"
    found_at: str = AT
    first_version: int = 2


@dataclass(frozen=True)
class Entry:
    """A row of a catalogue."""

    text: str
    tested: bool = False

    def __str__(self) -> str:
        return self.text


def head(card: str) -> Any:
    """What the front matter holds."""
    return yaml.safe_load(card.removeprefix("---\n").split("\n---\n", 1)[0])


def body(card: str) -> str:
    return card.split("\n---\n", 1)[1]  # only a line of its own ends the front matter


def tokens(markdown: str) -> list[Any]:
    """Every token, those inside lines too, as a reader with tables and HTML switched on sees them."""
    flat = []
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(markdown):
        flat += [token, *(token.children or ())]
    return flat


def shape(markdown: str) -> list[str]:
    """The kinds of the blocks, in their order."""
    return [token.type for token in tokens(markdown) if token.block]


def seen(markdown: str) -> str:
    """The text that a reader sees."""
    return "".join(token.content for token in tokens(markdown) if token.type in ("text", "code_inline"))


# --- the card ---


def test_a_card_says_what_was_measured_on_what_with_which_outcome():
    card = model_card(record(), evidence(), [], [], trained_on="digits, split train, digest dddd")
    shown = seen(body(card))
    for fact in (
        "Model card: digits, version 3",
        "Verdict: fail.",
        "network digits-cnn, stage baseline, digest aaaaaaaaaaaaaaaa",
        "Trained on: digits, split train, digest dddd",
        "Measured on: digits, digest dddddddddddddddd, split test, 500 samples, seed 7, 1 attack seed",
        "suite standard, digest 5555555555555555",
        f"Evidence: SHA-256 {digest(to_bytes(evidence()))}",
        "None is open.",
        "It is an upper bound",
        f"share the key {record().key}",
    ):
        assert fact in shown
    assert "redoubt reproduce 5f0c " in card
    assert "redoubt verify digits " in card


def test_each_number_stands_with_its_interval_floor_and_whether_it_may_be_believed():
    replayed = under("l2_1", "L2 1", 480, sound=False, alarms=("zero gradients", "flat curve"), replay=Share.of(9, 10))
    card = model_card(record(threats=(under("linf_0.15", "L-inf 0.15", 320), replayed)))
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in card.splitlines() if line.startswith("| ")]
    assert rows == [
        ["inputs", "accuracy", "95% interval", "floor", "may be believed"],
        ["as they are", "97.8%", "96.1% to 98.8%", "", "yes"],
        ["changed within L-inf 0.15", "64.0%", "59.7% to 68.1%", "50.0%", "yes"],
        ["changed within L2 1", "96.0%", "93.9% to 97.4%", "50.0%", "**no, void**: zero gradients, flat curve"],
        ["stored examples of earlier versions, L2 1", "90.0%", "59.6% to 98.2%", "", "no headline"],
    ]
    assert "The number under L2 1 is void: zero gradients, flat curve." in seen(body(card))


def test_the_head_is_a_model_index_without_the_numbers_that_are_void():
    void = under("l2_1", "L2 1", 480, sound=False)
    told = head(model_card(record(threats=(under("linf_0.15", "L-inf 0.15", 320), void)), evidence()))
    assert told["library_name"] == "pytorch"
    (model,) = told["model-index"]
    (result,) = model["results"]
    assert model["name"] == "digits version 3"
    assert result["task"]["type"] == "classification"
    assert result["dataset"] == {"name": "digits", "type": "digits", "split": "test", "revision": "d" * 16}
    assert [(metric["type"], metric["name"], metric["value"]) for metric in result["metrics"]] == [
        ("accuracy", "clean accuracy", 489 / 500),
        ("robust_accuracy", "robust accuracy under L-inf 0.15", 320 / 500),
    ]
    lower, upper = (result["metrics"][1]["args"][end] for end in ("lower", "upper"))
    assert (lower, upper) == (record().threats[0].robust.lo, record().threats[0].robust.hi)


def test_what_nobody_looked_at_is_not_called_clean():
    shown = seen(body(model_card(record())))
    assert "No ledger of findings was looked at" in shown
    assert "take nothing for tested" in shown
    assert "Trained on: not recorded here" in shown
    assert "Evidence: none is kept" in shown


def test_findings_stand_with_their_state_and_verified_ones_are_counted():
    states = ["open", "regressed", "mitigated", "accepted", "verified"]
    shown = seen(body(model_card(record(), findings=[Found(state) for state in states])))
    for state in states[:-1]:
        assert f"{state} F-00000001 L2 1, in version 2 first, {AT}: 23.0% withstood" in shown
    assert "verified F-00000001" not in shown
    assert "1 verified as mended." in shown


def test_only_what_was_not_tested_is_listed_as_such():
    card = model_card(
        record(), coverage=[Entry("AML.T0043 crafted: tested by suite", True), Entry("ML02 poisoning: no")]
    )
    section = seen(body(card)[body(card).index("What was not tested") : body(card).index("## Findings")])
    assert "ML02 poisoning: no" in section
    assert "AML.T0043" not in section
    assert "Every one of the 1 entries" in seen(body(model_card(record(), coverage=[Entry("one", True)])))


def test_the_ledger_and_the_catalogue_fit_the_card_as_they_are():
    facts = {"name": "digits", "kind": "robustness", "threat": "l2_1", "label": "L2 1", "data": "digits", "version": 3}
    seen_at = Observation(**facts, run_id="5f0c", at=AT, fresh="fail", sound=True, says="23.0% withstood.")
    finding = advance(None, seen_at)
    assert finding is not None
    shown = seen(body(model_card(record(), evidence(), [finding], coverage([record()]))))
    assert f"open {finding.id} L2 1, in version 3 first" in shown
    missing = [row for row in coverage([record()]) if not row.tested]
    assert missing
    assert all(str(row) in shown for row in missing)


NASTY = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](https://evil.example/p.png)",
    "[click](javascript:alert(1))",
    "[click][1]\n\n[1]: https://evil.example",
    "<https://evil.example>",
    "https://evil.example/x",
    "www.evil.example",
    "evil.example",
    "someone@evil.example",
    "mailto:someone@evil.example",
    "`` ` </code><b>bold</b>",
    "a\n\n# A heading",
    "---",
    "a\r\n---\r\nname: other",
    "---\nmodel-index: []\n---",
    "```\nrm -rf\n```",
    "x | 100.0% | 100.0% to 100.0% | | yes |\n| more | 1 | 2 | 3 | 4",
    "a|b@c|d",
    "\\",
    "trailing \\",
    "&lt;b&gt; &#60;b&#62;",
    "**bold** __bold__ ~~gone~~ $x$",
    "1. first",
    "- item",
    "+ item",
    "> quoted",
    "* * *",
    "\u202etxet desrever\u2028next\u0000",
    "<!-- gone -->",
    "",
    "   ",
]


def whole(text: str) -> tuple[str, str]:
    """A card that holds the text wherever a name or a sentence of others goes, and one that holds an ordinary word."""

    def card(word: str) -> str:
        facts = dict.fromkeys(("name", "stage", "verdict", "reason", "data", "split", "suite", "run_id"), word)
        facts |= dict.fromkeys(("measured_at", "weights_digest", "data_digest", "code"), word) | {"warm": word or " "}
        threats = (under(word, word, 320, sound=False, alarms=(word,), replay=Share.of(9, 10)), under(word, word, 300))
        made = record(**facts, suite_digest=word, threats=threats, environment={word: word})
        finding = Found(word, id=word, label=word, says=word, found_at=word)
        return model_card(made, findings=[finding], coverage=[Entry(word)], trained_on=word)

    return card(text), card("word")


def harmless(text: str) -> None:
    """Raises AssertionError where the text does anything in a card but to be read."""
    card, ordinary = whole(text)
    assert shape(body(card)) == shape(body(ordinary))
    kinds = {token.type for token in tokens(body(card))}
    assert kinds <= {token.type for token in tokens(body(ordinary))} | {"text_special"}
    assert not kinds & {"link_open", "image", "html_inline", "html_block"}
    bare = [token.content for token in tokens(body(card)) if token.type in ("text", "text_special")]
    assert not any(re.search(r"://|www\.|@", part) for part in bare if len(part) > 1)
    assert all(letter.isprintable() or letter == "\n" for letter in card)
    assert set(head(card)) == set(head(ordinary))
    assert len(head(card)["model-index"][0]["results"][0]["metrics"]) == 2


@pytest.mark.parametrize("text", NASTY)
def test_no_name_does_anything_in_a_card_but_to_be_read(text):
    harmless(text)


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab1 \n\t\\`*_{}[]()<>#+-.!|~&;:/@\"'=$^%", max_size=24))
def test_no_mixture_of_marks_does_anything_in_a_card_either(text):
    harmless(text)


@pytest.mark.parametrize(
    "text", ["a * b_c [d] <e> `f` #1 | x ~y~ !z & &amp; \\n $5", "1. one", "- two", "L-inf 0.15", "=x"]
)
def test_a_sentence_is_read_as_it_was_written(text):
    assert seen(plain(text)) == text
    assert shape(plain(text)) == ["paragraph_open", "inline", "paragraph_close"]


def test_a_name_is_read_as_it_was_written_but_for_the_marks_that_would_end_it():
    assert seen(code("pkg.mod:small<3>")) == "pkg.mod:small<3>"
    assert seen(code("a`b")) == "a'b"


def test_a_command_of_the_card_hands_the_shell_one_word():
    name = "digits; rm -rf $HOME\n`id`"
    lines = [line.split("  # ")[0] for line in model_card(record(name=name, run_id="a'b")).splitlines()]
    assert shlex.split(next(line for line in lines if line.startswith("redoubt verify"))) == [
        "redoubt",
        "verify",
        "digits; rm -rf $HOME `id`",
    ]
    assert shlex.split(next(line for line in lines if line.startswith("redoubt reproduce")))[2] == "a'b"


# --- evidence and record ---


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"evidence": "0" * 64}, "the record rests on evidence 0000"),
        ({"weights_digest": "b" * 16}, "the evidence is of weights aaaaaaaaaaaaaaaa, the record of weights bbbb"),
        ({"run_id": "beef"}, "the evidence is of run 5f0c, the record of run beef"),
    ],
)
def test_evidence_of_something_else_makes_neither_card_nor_bill(changes, why):
    with pytest.raises(EvidenceBroken, match=why):
        model_card(record(**changes), evidence())
    with pytest.raises(EvidenceBroken, match=why):
        ml_bom(record(**changes), evidence(), PACKAGES)


# --- the bill of materials ---


def complaint(bom: dict[str, Any]) -> str:
    """What the official schema has against it."""
    found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bom))
    return "" if found is None else str(found.data.message)


def test_the_bill_is_valid_under_the_official_schema():
    void = under("l2_1", "L2 1", 480, sound=False)
    sha = digest(to_bytes(evidence()))
    for made in (record(evidence=sha), record(threats=(void,)), record(name="a b/c@d?\n<é>", data="http://x y")):
        assert complaint(ml_bom(made, evidence(), PACKAGES)) == ""
    assert complaint(ml_bom(record(), evidence(made_at="2026-01-31 12:00+02:00"), {})) == ""


def test_the_schema_that_it_is_held_against_refuses_what_is_wrong():
    bom = ml_bom(record(), evidence(), PACKAGES)
    bom["metadata"]["component"]["hashes"][0]["content"] = "a" * 16
    assert "aaaaaaaaaaaaaaaa" in complaint(bom)
    assert complaint(ml_bom(record(), evidence(), PACKAGES) | {"serialNumber": "7"})


def test_hashes_are_whole_and_digests_cut_short_stand_under_properties():
    bom = ml_bom(record(), evidence(), PACKAGES)
    component = bom["metadata"]["component"]
    assert component["hashes"] == [{"alg": "SHA-256", "content": "a" * 16 + "0" * 48}]
    (kept,) = component["externalReferences"]
    assert kept["type"] == "evidence"
    assert kept["hashes"] == [{"alg": "SHA-256", "content": digest(to_bytes(evidence()))}]
    named = {row["name"]: row["value"] for row in component["properties"]}
    assert named["redoubt:suite_digest"] == "5" * 16
    assert named["redoubt:evidence"] == digest(to_bytes(evidence()))
    assert named["redoubt:threat/l2_1"] == "b" * 16
    data = next(row for row in bom["components"] if row["type"] == "data")
    assert {"name": "redoubt:data_digest", "value": "d" * 16} in data["properties"]
    assert "hashes" not in data
    for found in re.findall(r'"content": "([0-9a-f]+)"', json.dumps(bom)):
        assert len(found) == 64


def test_weights_that_are_no_artifact_get_no_hash_that_nobody_computed():
    bom = ml_bom(record(), evidence(artifacts={"report.json": "f" * 64}), PACKAGES)
    assert "hashes" not in bom["metadata"]["component"]


def test_the_numbers_stand_with_their_intervals_and_void_ones_as_limitations():
    void = under("l2_1", "L2 1", 480, sound=False, alarms=("flat curve",))
    made = record(threats=(under("linf_0.15", "L-inf 0.15", 320), void))
    card = ml_bom(made, evidence(), PACKAGES)["metadata"]["component"]["modelCard"]
    clean, robust = card["quantitativeAnalysis"]["performanceMetrics"]
    assert (clean["type"], float(clean["value"]), clean["slice"]) == ("accuracy", 489 / 500, "inputs as they are")
    assert (robust["type"], float(robust["value"]), robust["slice"]) == ("robust accuracy", 320 / 500, "L-inf 0.15")
    share, ends = made.threats[0].robust, robust["confidenceInterval"]
    assert (float(ends["lowerBound"]), float(ends["upperBound"])) == (share.lo, share.hi)
    assert "The number under L2 1 is void: flat curve." in card["considerations"]["technicalLimitations"]
    assert card["modelParameters"]["modelArchitecture"] == "digits-cnn"


def test_packages_are_libraries_under_the_address_that_pypi_gives_them():
    bom = ml_bom(record(), evidence(), PACKAGES | {"great-expectations": "1.24.1"})
    libraries = [row for row in bom["components"] if row["type"] == "library"]
    found = {
        (purl.type, purl.name, purl.version) for purl in (PackageURL.from_string(row["purl"]) for row in libraries)
    }
    assert found == {("pypi", "torch", "2.13.0+cpu"), ("pypi", "great-expectations", "1.24.1")}
    assert len(libraries) == 2  # one package under two spellings is one
    for row in ml_bom(record(), evidence(), {"odd": "1.0+a?b#c@d/e f"})["components"][1:]:
        assert PackageURL.from_string(row["purl"]).version == "1.0+a?b#c@d/e f"


def test_every_reference_names_something_and_no_two_things_share_a_name():
    bom = ml_bom(record(), evidence(), PACKAGES)
    refs = [row["bom-ref"] for row in (bom["metadata"]["component"], *bom["components"])]
    assert len(set(refs)) == len(refs)
    assert sorted(row["ref"] for row in bom["dependencies"]) == sorted(refs)
    assert set(bom["dependencies"][0]["dependsOn"]) == set(refs) - {bom["metadata"]["component"]["bom-ref"]}
    assert bom["metadata"]["component"]["modelCard"]["modelParameters"]["datasets"][0]["ref"] in refs


def test_the_same_evidence_gives_the_same_bill_and_another_another_number():
    one, two = (ml_bom(record(), evidence(), PACKAGES) for _ in range(2))
    assert json.dumps(one) == json.dumps(two)
    assert uuid.UUID(one["serialNumber"].removeprefix("urn:uuid:")).version == 5
    assert ml_bom(record(), evidence(seed=8), PACKAGES)["serialNumber"] != one["serialNumber"]
    assert one["metadata"]["timestamp"] == AT


def test_evidence_signatures_cards_and_bills_need_no_framework():
    code = "import sys, tasks.posture.bom, tasks.posture.signing; print({*sys.modules} & {*sys.argv[1:]})"
    heavy = ["torch", "pandas", "prefect", "mlflow", "great_expectations"]
    ran = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.strip() == "set()"
