"""compare(): unequal evaluations are refused, and equal ones paired sample by sample."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import day, record, table, threat

from tasks.errors import EvidenceBroken, WrongInput
from tasks.posture.compare import Measured, compare, compare_page, pictures
from tasks.posture.record import FACTS

NAME = "linf_0.15"


def measured(version: int, held, *, correct=None, y=None, **facts) -> Measured:
    """A version of which held [N] withstood under one threat model."""
    right = np.ones(len(held)) if correct is None else np.array(correct)
    found = table(held, correct=right, y=y)
    stands = int((~found["fooled"] & found["clean_correct"]).sum())
    sound = facts.pop("sound", True)
    number = threat(stands, n=len(held), sound=sound, alarms=() if sound else ("transfer",))
    of = record(version, number, n=len(held), clean=int(right.sum()), **facts)
    return Measured(of, {NAME: found})


def split(lost: int, gained: int, both: int, neither: int) -> tuple[list[int], list[int]]:
    """What the earlier and what the later version withstood."""
    before = [1] * lost + [0] * gained + [1] * both + [0] * neither
    after = [0] * lost + [1] * gained + [1] * both + [0] * neither
    return before, after


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [
        (5, 0, 2 / 2**5),
        (0, 5, 2 / 2**5),
        (6, 1, 2 * (1 + 7) / 2**7),
        (10, 2, 2 * (1 + 12 + 66) / 2**12),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_p_is_that_of_the_exact_test_and_corrected_for_two_questions(lost, gained, p):
    before, after = split(lost, gained, 50, 20)
    clean, number = compare(measured(1, before), measured(2, after)).questions
    assert number.p_alone == pytest.approx(p)
    assert number.p == pytest.approx(min(1, 2 * p))  # of clean accuracy p is 1: nothing differs
    assert (clean.p, clean.outcome, clean.label) == (1, "within chance", "clean accuracy")
    assert (len(number.regressed), len(number.repaired)) == (lost, gained)
    assert number.loss == pytest.approx((lost - gained) / (lost + gained + 70))


def test_the_interval_of_the_loss_is_two_sided_and_has_half_a_sample_more_in_each_cell():
    before, after = split(12, 2, 80, 6)
    number = compare(measured(1, before), measured(2, after)).questions[1]
    shift, spread = 10 / 102, 1.959964 * (15 - 100 / 102) ** 0.5 / 102  # 12.5 and 2.5 of 102
    assert (number.loss_lo, number.loss_hi) == (pytest.approx(shift - spread), pytest.approx(shift + spread))


@pytest.mark.parametrize(
    ("lost", "gained", "outcome"),
    [(30, 5, "lower"), (5, 30, "higher"), (10, 8, "within chance"), (6, 0, "within chance"), (7, 0, "lower")],
)
def test_the_outcome_follows_from_the_corrected_p(lost, gained, outcome):
    before, after = split(lost, gained, 100, 20)  # (6, 0): 2 * 2 / 2^6 = 0.063; (7, 0): 2 * 2 / 2^7 = 0.031
    assert compare(measured(1, before), measured(2, after)).questions[1].outcome == outcome


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_rows_and_counts_agree_with_the_tables_and_the_other_way_round_is_the_mirror(samples):
    first = measured(1, [a for a, _, _, _ in samples], correct=[c for _, _, c, _ in samples])
    second = measured(2, [b for _, b, _, _ in samples], correct=[d for _, _, _, d in samples])
    there, back = compare(first, second), compare(second, first)
    for question, mirror in zip(there.questions, back.questions, strict=True):
        assert question.regressed == mirror.repaired
        assert question.loss == pytest.approx(-mirror.loss)
        assert question.loss_lo == pytest.approx(-mirror.loss_hi)
        assert question.p == mirror.p
        assert question.loss_lo <= question.loss_hi
    number = there.questions[1]
    lost = [3 * i for i, (a, b, c, d) in enumerate(samples) if (a and c) and not (b and d)]
    assert list(number.regressed) == lost
    kept = number.before.value - number.after.value
    assert number.loss == pytest.approx(kept)


def test_samples_are_paired_by_their_row_in_whatever_order_they_stand():
    before, after = split(12, 2, 30, 6)
    first, second = measured(1, before, y=[0, 1] * 25), measured(2, after, y=[0, 1] * 25)
    order = np.random.default_rng(0).permutation(50)
    mixed = {name: column[order] for name, column in second.outcomes[NAME].items()}
    assert compare(first, Measured(second.record, {NAME: mixed})) == compare(first, second)


OTHER = {
    "split": {"split": "select"},
    "data_digest": {"data_digest": "other"},
    "samples": {},
    "seed": {"seed": 1},
    "seeds": {"seeds": 2},
    "threat_digests": {},
    "suite_digest": {"suite_digest": "6" * 64, "suite": "deep"},
    "warm": {"warm": "w" * 64},
}


@pytest.mark.parametrize("fact", FACTS)
def test_unequal_evaluations_are_refused_with_the_first_difference_and_what_mends_it(fact):
    first, second = measured(1, [1] * 40), measured(2, [1] * (39 if fact == "samples" else 40), **OTHER[fact])
    if fact == "threat_digests":
        number = second.record.threats[0].model_copy(update={"digest": "another"})
        second = Measured(second.record.model_copy(update={"threats": (number,)}), second.outcomes)
    with pytest.raises(WrongInput) as refused:
        compare(first, second)
    assert f"not measured with the same {FACTS[fact]}." in str(refused.value)
    assert re.search(
        r"Measure both alike: redoubt (reattack digits --versions 1,2|evaluate models:/digits/1)", str(refused.value)
    )


def test_the_facts_of_the_table_are_all_there_are():
    assert set(OTHER) == set(FACTS)


def test_other_rows_of_the_same_split_are_refused():
    first, second = measured(1, [1] * 40), measured(2, [1] * 40)
    moved = {**second.outcomes[NAME], "row": second.outcomes[NAME]["row"] + 1}
    with pytest.raises(WrongInput, match="not measured on the same rows of test"):
        compare(first, Measured(second.record, {NAME: moved}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fooled": np.ones(40, dtype=bool)}, "withstood 0, the record says 40"),
        ({"row": np.zeros(40, dtype=int)}, "different rows 1, the record says 40"),
        ({"clean_correct": np.arange(40) > 3}, "withstood 36, the record says 40"),
        ({"row": np.arange(39)}, "cut short"),
    ],
)
def test_a_table_that_is_not_what_its_record_says_is_broken_evidence(change, said):
    first, second = measured(1, [1] * 40), measured(2, [1] * 40)
    with pytest.raises(EvidenceBroken, match=said):
        compare(first, Measured(second.record, {NAME: {**second.outcomes[NAME], **change}}))


def test_classes_that_differ_for_the_same_rows_are_broken_evidence():
    with pytest.raises(EvidenceBroken, match="other classes for the same rows"):
        compare(measured(1, [1] * 4, y=[0, 1, 0, 1]), measured(2, [1] * 4, y=[0, 1, 1, 1]))


def test_a_table_that_is_missing_is_said_with_the_command():
    first = measured(1, [1] * 40)
    with pytest.raises(WrongInput, match=r"Measure it again: redoubt reattack digits --versions 1 --again"):
        compare(Measured(first.record, {}), measured(2, [1] * 40))


def test_a_class_is_named_only_where_its_loss_is_beyond_chance_for_the_number_of_classes():
    y = np.repeat(np.arange(10), 20)
    before, after = np.ones(200), np.ones(200)
    after[np.flatnonzero(y == 3)[:8]] = 0  # p alone 2 / 2^8
    after[np.flatnonzero(y == 5)[:6]] = 0  # 2 / 2^6: alone below 0.05, not with nine others beside it
    number = compare(measured(1, before, y=y), measured(2, after, y=y)).questions[1]
    of = {tally.cls: tally for tally in number.classes}
    assert [(of[c].n, of[c].lost, of[c].gained) for c in (3, 5, 0)] == [(20, 8, 0), (20, 6, 0), (20, 0, 0)]
    assert of[3].p == pytest.approx(10 * 2 / 2**8)
    assert of[5].p == pytest.approx(9 * 2 / 2**6)
    assert of[0].p == 1


def test_old_tables_tell_no_classes():
    found = compare(measured(1, [1] * 40), measured(2, [0] * 40))
    assert found.questions[1].classes is None
    assert "do not tell the classes" in compare_page(found)


@pytest.mark.parametrize("which", [0, 1])
def test_a_void_number_is_compared_with_nothing(which):
    before, after = split(30, 0, 100, 20)
    pair = [measured(1, before, sound=which != 0), measured(2, after, sound=which != 1)]
    clean, number = compare(*pair).questions
    assert (clean.outcome, number.outcome) == ("within chance", "void")
    assert "void" in number.says


def test_what_else_differs_is_noted():
    same = measured(1, [1] * 40, weights_digest="w")
    other = measured(2, [1] * 40, weights_digest="w", code="new", environment={"torch": "2.14.0"}, measured_at=day(1))
    notes = compare(measured(1, [1] * 40, weights_digest="w", measured_at=day(2)), other).notes
    assert [note.split()[0] for note in notes] == ["The", "Redoubt's", "python", "torch", "Version"]
    assert "The weights are the same" in notes[0]
    assert "(2.13.0, then 2.14.0)" in notes[3]
    assert compare(same, measured(2, [1] * 40)).notes == ()


def test_the_stricter_of_two_confidences_holds():
    first, second = measured(1, [1] * 40, confidence=0.9), measured(2, [1] * 40, confidence=0.99)
    assert compare(first, second).confidence == compare(second, first).confidence == 0.99
    assert compare(first, second).notes == ("The records' intervals are of 90% and of 99% confidence.",)


def test_the_comparison_is_json_and_back():
    before, after = split(30, 2, 100, 20)
    found = compare(measured(1, before, y=[0] * 152), measured(2, after, y=[0] * 152))
    assert type(found).model_validate_json(found.model_dump_json()) == found


def examples(of: Measured, shape: tuple[int, ...], *, old: bool = False) -> dict:
    """What fooled it, as it is stored: 0.25 became 0.75, of row r at the place r modulo the size."""
    found = of.outcomes[NAME]
    hit = found["fooled"] & found["clean_correct"]
    rows = found["row"][hit]
    x = np.full((len(rows), *shape), 0.25)
    x_adv = x.copy()
    for place, row in enumerate(rows):
        x_adv[place].flat[row % x_adv[place].size] = 0.75
    stored = {"rows": rows, "x_adv": x_adv, "prediction": np.full(len(rows), 7)}
    return {NAME: stored if old else stored | {"x": x, "y": np.full(len(rows), 4)}}


def test_pictures_show_what_fools_the_later_version_and_what_fooled_the_earlier_one():
    before, after = split(5, 3, 20, 6)
    a, b = measured(1, before), measured(2, after)
    found = compare(a, b)
    shown = pictures(found, examples(a, (1, 4, 4)), examples(b, (1, 4, 4)), limit=2)
    assert [(p.kind, p.row) for p in shown] == [("regressed", 0), ("regressed", 3), ("repaired", 15), ("repaired", 18)]
    for picture in shown:
        assert picture.x_adv.flat[picture.row % 16] == 0.75
        assert (picture.y, picture.prediction) == (4, 7)
    html = compare_page(found, shown)
    assert html.count("data:image/png;base64,") == 12
    assert "row 15: class 4, taken for 7" in html
    assert "2 of 5 samples that regressed" in html
    assert "2 of 3 samples that were repaired" in html


def test_a_sample_that_is_wrong_as_it_is_has_no_picture():
    a, b = measured(1, [1, 1]), measured(2, [0, 0], correct=[1, 0])
    shown = pictures(compare(a, b), examples(a, (3,)), examples(b, (3,)))
    assert [picture.row for picture in shown] == [0]


def test_tables_show_the_features_that_moved_and_old_examples_what_they_became():
    before, after = split(2, 0, 20, 6)
    a, b = measured(1, before), measured(2, after)
    found = compare(a, b)
    new = compare_page(found, pictures(found, {}, examples(b, (30,))))
    assert '<td>feature 3</td><td class="n">0.250</td><td class="n">0.750</td>' in new
    old = pictures(found, {}, examples(b, (30,), old=True))
    assert old[0].x is None
    assert '<td>feature 3</td><td class="n">0.750</td>' in compare_page(found, old)


class Page(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags, self.links = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "srcset") and v]


def test_the_page_loads_nothing_and_shows_names_as_text():
    evil = "<img src=http://evil.example/x onerror=alert(1)>"
    before, after = split(5, 3, 20, 6)
    facts = {"name": evil, "data": evil, "environment": {evil: evil}, "suite": evil}
    a, b = measured(1, before, **facts), measured(2, after, **facts)
    found = compare(a, b)
    html = compare_page(found, pictures(found, examples(a, (3, 4, 4)), examples(b, (3, 4, 4))))
    page = Page(html)
    assert evil not in html
    assert "&lt;img src=http://evil.example/x" in html
    assert page.tags.count("img") == 3 * 8
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert "default-src 'none'" in html
    assert "url(" not in html
