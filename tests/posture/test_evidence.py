"""A file of evidence is written in one form only, and the chain of them has no gap."""

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import EvidenceBroken, WrongInput
from tasks.posture.consistency import mismatches
from tasks.posture.evidence import (
    DataFacts,
    Evidence,
    SuiteFacts,
    WeightsFacts,
    chain,
    digest,
    fooled_digest,
    parse,
    rows_digest,
    to_bytes,
)

# --- the form ---


def test_the_bytes_do_not_depend_on_the_order_of_keys(kept):
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(item) for item in value] if isinstance(value, list) else value

    raw = to_bytes(kept.evidence)
    assert list(turned(json.loads(raw))) != list(json.loads(raw))
    assert to_bytes(Evidence.model_validate(turned(json.loads(raw)))) == raw


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(config=st.dictionaries(st.text(max_size=5), JSON, max_size=4), rng=st.randoms())
def test_whatever_a_config_holds_comes_back_and_hashes_the_same(kept, config, rng):
    evidence = kept.evidence.model_copy(update={"config": config})
    raw = to_bytes(evidence)
    shuffled = list(config.items())
    rng.shuffle(shuffled)
    assert to_bytes(kept.evidence.model_copy(update={"config": dict(shuffled)})) == raw
    assert parse(raw).config == config
    assert to_bytes(parse(raw)) == raw


def test_format_1_is_written_in_these_very_bytes_for_ever(kept):
    facts = {
        "artifacts": {"report.json": "0" * 64},
        "outcomes": {"linf_0.1": "0" * 64},
        "config": {"é": [1, 0.5, None]},
    }
    facts |= {"threats": {"linf_0.1": "0" * 16}, "suite": SuiteFacts(name="s", digest="0" * 16, attacks=({"a": 1},))}
    facts |= {"data": DataFacts(name="d", digest="0" * 16, split="test", rows="0" * 64)}
    facts |= {"weights": WeightsFacts(model="m", kind="onnx", uri="u", digest="0" * 16)}
    zeros, sixteen = "0" * 64, "0" * 16
    assert to_bytes(kept.evidence.model_copy(update=facts)).decode() == (
        f'{{"artifacts":{{"report.json":"{zeros}"}},"code":{{"commit":"","digest":"cccccccccccccccc",'
        '"version":"0.1.0"},"config":{"é":[1,0.5,null]},"corpus":{},'
        f'"data":{{"digest":"{sixteen}","name":"d","rows":"{zeros}","split":"test"}},'
        '"environment":{"device":"cpu","python":"3.11.9","torch":"2.13.0"},"format":"redoubt-evidence/1",'
        '"made_at":"2026-01-31T12:00:00+00:00","model_code":"","name":"digits",'
        f'"outcomes":{{"linf_0.1":"{zeros}"}},"previous":"","run_id":"5f0c","seed":7,"seeds":1,"stage":"baseline",'
        f'"suite":{{"attacks":[{{"a":1}}],"digest":"{sixteen}","name":"s"}},"threats":{{"linf_0.1":"{sixteen}"}},'
        '"verdict":{"outcome":"fail","reasons":["too low"]},"version":3,'
        f'"weights":{{"digest":"{sixteen}","kind":"onnx","model":"m","uri":"u"}}}}\n'
    )


def test_samples_are_hashed_as_described():
    assert fooled_digest([True, False, True]) == hashlib.sha256(b"3:\xa0").hexdigest()
    assert fooled_digest([True, False, True]) != fooled_digest([True, False, True, False])
    assert rows_digest([0, 5, 2**40]) == hashlib.sha256(struct.pack("<3q", 0, 5, 2**40)).hexdigest()
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda raw: raw.rstrip(), "canonical form"),
        (lambda raw: b" " + raw, "canonical form"),
        (lambda raw: json.dumps(json.loads(raw), indent=1).encode(), "canonical form"),
        (lambda raw: raw.replace(b'"seed":7,', b'"seed":1,"seed":7,'), "canonical form"),
        (lambda raw: raw.replace(b'"seed":7,', b'"seed":7.0,'), "canonical form"),
        (lambda raw: raw.replace(b'"seed":7,', b'"seed":"7",'), "canonical form"),
        (lambda raw: raw.replace(b'"seed":7,', b'"seed":7,"more":1,'), "more: Extra inputs are not permitted"),
        (lambda raw: raw.replace(b'"seed":7,', b""), "seed: Field required"),
        (lambda raw: raw.replace(b'"samples":203', b'"samples":NaN'), "cannot be written as JSON"),
        (lambda raw: raw.replace(b'"samples":203', b'"samples":1e999'), "cannot be written as JSON"),
        (lambda raw: raw.replace(b"evidence/1", b"evidence/2"), "format"),
        (lambda raw: raw.replace(b'"outcomes":{"l2_1.5"', b'"outcomes":{"l2_9"'), "outcomes are of"),
        (lambda raw: raw.replace(b'"adversarial/l2', b'"../adversarial/l2'), "is no path inside a run"),
        (lambda raw: raw.replace(b"+00:00", b""), "names no time zone"),
        (lambda raw: raw.replace(b"2026-01-31T", b"2026-31-01T"), "made_at"),
        (lambda raw: raw.replace(b"digits", b"dig\xffts"), "Invalid JSON"),
        (lambda raw: raw[: len(raw) // 2], "Invalid JSON"),
        (lambda raw: b"[" * 100_000, "Invalid JSON"),
        (lambda raw: b"", "Invalid JSON"),
        (lambda raw: b"null", "object"),
    ],
)  # fmt: skip
def test_what_is_not_exactly_an_evidence_file_is_refused_with_the_reason(kept, change, why):
    raw = to_bytes(kept.evidence)
    changed = change(raw)
    assert changed != raw
    with pytest.raises(EvidenceBroken, match=why):
        parse(changed)
    found = list(mismatches(changed, digest(changed), kept.files.__getitem__))
    assert len(found) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"], ids=["nan", "inf", "half a character"])
def test_a_config_that_json_cannot_hold_is_wrong_input(kept, value):
    with pytest.raises(WrongInput, match="cannot be written as JSON"):
        to_bytes(kept.evidence.model_copy(update={"config": {"policy": {"floor": value}}}))


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../b", "a//b", "./a", "", "a\\b", "a\nb", "a/"])
def test_a_path_that_leaves_the_run_is_refused(kept, path):
    values = kept.evidence.model_dump() | {"artifacts": {path: "0" * 64}}
    with pytest.raises(ValueError, match="is no path inside a run"):
        Evidence.model_validate(values)


# --- the chain ---


@pytest.fixture
def links(kept) -> list[bytes]:
    """Four files of evidence of one version, the oldest first."""
    made: list[bytes] = []
    for day in range(1, 5):
        previous = digest(made[-1]) if made else ""
        facts = {"made_at": f"2026-02-0{day}T12:00:00+00:00", "previous": previous, "run_id": f"run-{day}"}
        made.append(to_bytes(kept.evidence.model_copy(update=facts)))
    return made


def shelf(*raw: bytes) -> dict[str, tuple[bytes, ...]]:
    return {digest(one): (one,) for one in raw}


def walked(head: str, there: Mapping[str, tuple[bytes, ...]]) -> tuple[list[str], str]:
    """The runs that were passed, the newest first, and what stopped the walk."""
    runs = []
    try:
        for evidence in chain(head, lambda wanted: there.get(wanted, ())):
            runs.append(evidence.run_id)
    except EvidenceBroken as broken:
        return runs, str(broken)
    return runs, ""


def test_the_chain_is_walked_from_the_head_to_the_start(links):
    assert walked(digest(links[-1]), shelf(*links)) == (["run-4", "run-3", "run-2", "run-1"], "")
    assert walked(digest(links[0]), shelf(*links)) == (["run-1"], "")


@pytest.mark.parametrize("gone", range(4))
def test_a_link_that_was_deleted_leaves_a_gap(links, gone):
    runs, why = walked(digest(links[-1]), shelf(*links[:gone], *links[gone + 1 :]))
    assert runs == [f"run-{number}" for number in range(4, gone + 1, -1)]
    assert digest(links[gone]) in why
    assert why.endswith("is missing: the chain has a gap.")


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 2), (0, 3), (2, 3)])
def test_links_that_changed_places_are_found_out(links, a, b):
    there = shelf(*links)
    there[digest(links[a])], there[digest(links[b])] = (links[b],), (links[a],)
    runs, why = walked(digest(links[-1]), there)
    assert runs == [f"run-{number}" for number in range(4, b + 1, -1)]
    assert f"hashes to {digest(links[a])}: it was changed" in why


def test_a_link_that_was_put_between_two_others_is_found_out(links):
    new = to_bytes(parse(links[2]).model_copy(update={"run_id": "new", "previous": digest(links[1])}))
    behind = to_bytes(parse(links[2]).model_copy(update={"previous": digest(new)}))
    there = shelf(*links, new) | {digest(links[2]): (behind,)}
    runs, why = walked(digest(links[-1]), there)
    assert runs == ["run-4"]
    assert f"hashes to {digest(behind)}: it was changed" in why


@pytest.mark.parametrize("place", range(4))
def test_a_link_that_was_edited_in_place_is_found_out(links, place):
    edited = to_bytes(parse(links[place]).model_copy(update={"seed": 99}))
    runs, why = walked(digest(links[-1]), shelf(*links) | {digest(links[place]): (edited,)})
    assert len(runs) == 3 - place
    assert "it was changed" in why


def test_an_impostor_beside_the_true_file_changes_nothing(links):
    impostor = to_bytes(parse(links[1]).model_copy(update={"seed": 99}))
    there = shelf(*links) | {digest(links[1]): (impostor, links[1])}
    assert walked(digest(links[-1]), there)[1] == ""


def test_links_that_name_each_other_do_not_turn_in_a_circle(kept):
    a, b = "a" * 64, "b" * 64
    there = {
        a: (to_bytes(kept.evidence.model_copy(update={"previous": b})),),
        b: (to_bytes(kept.evidence.model_copy(update={"previous": a})),),
    }
    runs, why = walked(a, there)
    assert runs == []
    assert "it was changed" in why


@pytest.mark.parametrize("head", ["", "0" * 64, "latest"])
def test_a_head_that_names_nothing_is_a_gap_and_no_empty_chain(links, head):
    assert walked(head, shelf(*links)) == ([], f"evidence {head!r} is missing: the chain has a gap.")


@pytest.mark.parametrize(
    "facts",
    [
        {"name": "letters"},
        {"version": 2},
        {"weights": WeightsFacts(model="m", kind="weights", uri="u", digest="0" * 16)},
    ],
    ids=["another model", "another version", "other weights"],
)
def test_a_chain_that_goes_over_to_another_version_is_refused(links, facts):
    other = to_bytes(parse(links[0]).model_copy(update=facts))
    head = to_bytes(parse(links[1]).model_copy(update={"previous": digest(other)}))
    runs, why = walked(digest(head), shelf(head, other))
    assert runs == ["run-2"]
    assert "A chain holds the evidence of one version only." in why


def test_the_first_link_may_be_older_than_its_versions_number(links):
    first = to_bytes(parse(links[0]).model_copy(update={"version": None}))
    head = to_bytes(parse(links[1]).model_copy(update={"previous": digest(first)}))
    assert walked(digest(head), shelf(head, first)) == (["run-2", "run-1"], "")


def test_a_link_that_is_no_evidence_is_refused(links):
    head = to_bytes(parse(links[1]).model_copy(update={"previous": digest(b"{}")}))
    runs, why = walked(digest(head), shelf(head, b"{}"))
    assert runs == ["run-2"]
    assert why.startswith("this is no evidence file")
