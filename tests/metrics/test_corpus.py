"""Stored adversarial examples: what is kept of them, and what a changed file comes to."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.attacks import ThreatModel
from tasks.errors import EvidenceBroken, WrongInput
from tasks.metrics.corpus import Corpus

LINF = ThreatModel(norm="linf", eps=0.1)


def corpus(threat: ThreatModel = LINF, shape: tuple[int, ...] = (2,)) -> Corpus:
    return Corpus.empty(shape, data_digest="0123456789abcdef", threat=threat)


def stored() -> Corpus:
    """Six examples of four rows, two of them found on version 2."""
    first = corpus().with_found(
        1,
        torch.tensor([7, 7, 3, 99]),
        torch.tensor([[0.52, 0.55], [0.48, 0.46], [0.51, 0.53], [0.9, 0.9]]),
        torch.tensor([0, 0, 0, 1]),
    )
    return first.with_found(2, torch.tensor([7, 11]), torch.tensor([[0.54, 0.48], [0.52, 0.48]]), torch.tensor([0, 1]))


FOUND = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2), st.integers(0, 30)), max_size=25)


def build(found: list[tuple[int, int, int]], per_row: int) -> Corpus:
    """A corpus that was told of (version, row, example) one after another."""
    whole = corpus(shape=(1,))
    for version, row, value in found:
        x_adv = torch.tensor([[value / 30]])
        whole = whole.with_found(version, torch.tensor([row]), x_adv, torch.tensor([row]), per_row=per_row)
    return whole


def at_once(found: list[tuple[int, int, int]], per_row: int) -> Corpus:
    """A corpus that was told of all examples of a version together."""
    whole = corpus(shape=(1,))
    for version in sorted({v for v, _, _ in found}, reverse=True):
        of = torch.tensor([(row, value) for v, row, value in found if v == version])
        whole = whole.with_found(version, of[:, 0], of[:, 1:] / 30, of[:, 0], per_row=per_row)
    return whole


@settings(max_examples=40, deadline=None)
@given(found=FOUND, per_row=st.integers(1, 4), random=st.randoms(use_true_random=False))
def test_what_is_kept_depends_neither_on_the_order_nor_on_the_portions_it_came_in(found, per_row, random):
    distinct = list({(row, value): (version, row, value) for version, row, value in found}.values())
    shuffled = random.sample(distinct, len(distinct))
    once = build(distinct, per_row)
    assert build(shuffled, per_row).digest == once.digest == at_once(distinct, per_row).digest
    for version, (rows, x_adv) in once.by_version().items():
        assert once.with_found(version, rows, x_adv, rows, per_row=per_row).digest == once.digest


@settings(max_examples=40, deadline=None)
@given(found=FOUND, per_row=st.integers(1, 4))
def test_a_rows_newest_and_oldest_versions_stay_and_nothing_goes_that_has_a_place(found, per_row):
    distinct = list({(row, value): (version, row, value) for version, row, value in found}.values())
    kept = build(distinct, per_row)
    for row in {row for _, row, _ in distinct}:
        versions = [v for v, r, _ in distinct if r == row]
        stays = kept.version[kept.rows == row].tolist()
        assert len(stays) == min(per_row, len(versions))
        assert max(versions) in stays
        assert per_row == 1 or min(versions) in stays
        assert len(set(stays)) == min(per_row, len(set(versions)))


@pytest.mark.parametrize(
    ("per_row", "versions"),
    [(1, [5]), (2, [1, 5]), (3, [1, 4, 5]), (4, [1, 3, 4, 5]), (5, [1, 2, 3, 4, 5]), (6, [1, 2, 3, 4, 5, 5])],
)
def test_of_five_versions_the_newest_the_oldest_and_then_the_next_newest_stay(per_row, versions):
    found = [(version, 0, 6 * again + version) for version in range(1, 6) for again in range(2)]
    kept = build(found, per_row)
    assert kept.version.tolist() == versions


@settings(max_examples=40, deadline=None)
@given(found=FOUND)
def test_with_room_for_all_a_corpus_is_the_union_with_the_first_version_of_each(found):
    whole = build(found, per_row=100)
    held = zip(
        whole.rows.tolist(), (whole.x_adv[:, 0] * 30).round().int().tolist(), whole.version.tolist(), strict=True
    )
    first: dict[tuple[int, int], int] = {}
    for version, row, value in found:
        first[row, value] = min(version, first.get((row, value), version))
    assert sorted(held) == sorted((row, value, version) for (row, value), version in first.items())


def test_a_file_gives_the_corpus_back_and_its_digest_follows_content_alone():
    whole, order = stored(), torch.tensor([4, 0, 5, 2, 1, 3])
    back = Corpus.from_bytes(whole.to_bytes())
    assert all(torch.equal(getattr(back, name), getattr(whole, name)) for name in ("rows", "x_adv", "y", "version"))
    assert (back.threat, back.data_digest, back.digest) == (whole.threat, whole.data_digest, whole.digest)
    turned = Corpus(*(getattr(whole, n)[order] for n in ("rows", "x_adv", "y", "version")), whole.data_digest, LINF)
    assert turned.digest == whole.digest
    other = [
        stored().with_found(3, torch.tensor([3]), torch.tensor([[0.5, 0.5]]), torch.tensor([0])),
        Corpus(whole.rows, whole.x_adv, whole.y, whole.version + 1, whole.data_digest, LINF),
        Corpus(whole.rows, whole.x_adv.nextafter(torch.ones(())), whole.y, whole.version, whole.data_digest, LINF),
        Corpus(whole.rows, whole.x_adv, whole.y, whole.version, "other", LINF),
        Corpus(whole.rows, whole.x_adv, whole.y, whole.version, whole.data_digest, ThreatModel(norm="l2", eps=0.1)),
    ]
    assert len({whole.digest, *(c.digest for c in other)}) == 6
    nothing = corpus()
    assert Corpus.from_bytes(nothing.to_bytes()).digest == nothing.digest


def rewritten(**changes: object) -> bytes:
    """The file of stored() with some of its arrays replaced; one that is None is left out."""
    with np.load(io.BytesIO(stored().to_bytes())) as arrays:
        held = {name: arrays[name] for name in arrays.files} | changes
    raw = io.BytesIO()
    np.savez(raw, **{name: part for name, part in held.items() if part is not None})
    return raw.getvalue()


class Payload:
    """What a pickle may do to whoever opens it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


ROWS, X_ADV = stored().rows.numpy(), stored().x_adv.numpy()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "BadZipFile"),
        (stored().to_bytes()[:200], "BadZipFile"),
        (rewritten(x_adv=np.where(X_ADV > 0.6, np.float32("nan"), X_ADV)), "not finite"),
        (rewritten(x_adv=X_ADV * 1.2), "the box is 0..1"),
        (rewritten(x_adv=X_ADV.astype(np.float64)), "x_adv is torch.float64"),
        (rewritten(x_adv=X_ADV.astype(">f4")), "byte order"),
        (rewritten(x_adv=X_ADV[:-1]), r"x_adv is \[5, 2\] for rows \[6\]"),
        (rewritten(rows=ROWS.astype(np.int32)), "rows is torch.int32"),
        (rewritten(rows=ROWS[:, None]), "rows is"),
        (rewritten(rows=ROWS - 4), "count from 0"),
        (rewritten(version=ROWS * 0), "versions from 1"),
        (rewritten(rows=ROWS * 0, x_adv=X_ADV * 0), "twice"),
        (rewritten(y=np.arange(6)), "row 7 is labelled"),
        (rewritten(y=None), "it holds data_digest, rows"),
        (rewritten(more=ROWS), "it holds data_digest, more"),
        (rewritten(threat=np.array('{"norm": "l3", "eps": 1}')), "ValidationError"),
        (rewritten(threat=np.array(LINF.model_copy(update={"mask": (True,)}).model_dump_json())), "1 features"),
    ],
)
def test_a_file_that_is_no_corpus_is_refused(raw, says):
    with pytest.raises(EvidenceBroken, match=says):
        Corpus.from_bytes(raw)


def test_a_flipped_byte_is_refused_or_changes_nothing_that_counts():
    whole, refused = stored().to_bytes(), 0
    for place in range(0, len(whole), 5):
        flipped = bytearray(whole)
        flipped[place] ^= 0x80
        try:
            assert Corpus.from_bytes(bytes(flipped)).digest == stored().digest
        except EvidenceBroken:
            refused += 1
    assert refused > 0.5 * len(whole) / 5


def test_a_pickle_in_the_file_is_refused_and_never_opened(tmp_path):
    trap = np.array([Payload(str(tmp_path / "sprung"))], dtype=object)
    with pytest.raises(EvidenceBroken, match="allow_pickle"):
        Corpus.from_bytes(rewritten(x_adv=trap))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 0}, "count from 1"),
        ({"per_row": 0}, "count from 1"),
        ({"rows": torch.tensor([3.0])}, "must be integers"),
        ({"rows": torch.tensor([3, 4])}, "do not fit"),
        ({"x_adv": torch.tensor([[0.5]])}, "do not fit"),
        ({"x_adv": torch.tensor([[0.5, float("inf")]])}, "not finite"),
        ({"x_adv": torch.tensor([[0.5, 1.1]])}, "the box is"),
        ({"rows": torch.tensor([-1])}, "count from 0"),
        ({"y": torch.tensor([1])}, "row 3 is labelled 0 and 1"),
        ({"y": torch.tensor([1]), "per_row": 1}, "row 3 is labelled 0 and 1"),
    ],
)
def test_what_does_not_fit_the_corpus_is_refused_when_it_is_added(change, says):
    given = {"version": 3, "rows": torch.tensor([3]), "x_adv": torch.tensor([[0.5, 0.5]]), "y": torch.tensor([0])}
    with pytest.raises(WrongInput, match=says):
        stored().with_found(**given | change)


def test_examples_of_other_precision_are_kept_as_float32_and_once():
    one = torch.tensor([[0.1, 0.7]], dtype=torch.float64)
    twice = corpus().with_found(1, torch.tensor([3, 3]), torch.cat([one, one.float().double()]), torch.tensor([0, 0]))
    assert twice.x_adv.tolist() == [one.float()[0].tolist()]
