"""Great Expectations on planted faults: each is found, counted and named."""

from html.parser import HTMLParser

import pytest
import torch

from flows.recipes import digits
from tasks.data import Data, DataContract, describe, load, summarise
from tasks.errors import DataRejected
from tasks.evidence import render_validation
from tasks.track import load_bytes, open_run
from tasks.validate import check, validate_data

CONTRACT = digits().contract


def nan(s):
    s["train"][0][3, 0, 2, 2] = float("nan")


def outside(s):
    s["select"][0][4, 0, 0, 0] = 1.5


def label(s):
    s["test"][1][5] = 12


def copies(s):
    s["train"][0][100:200] = s["train"][0][0]


def leaked(s):
    s["test"][0][7] = s["train"][0][9]


def missing(s):
    keep = s["test"][1] != 3
    s["test"] = (s["test"][0][keep], s["test"][1][keep])


def rare(s):
    keep = (s["train"][1] != 8) | (torch.arange(1047) < 100)
    s["train"] = (s["train"][0][keep], s["train"][1][keep])


def flat(s):
    for split in s:
        s[split] = (s[split][0].flatten(1), s[split][1])


@pytest.mark.parametrize(
    ("fault", "promise", "broken", "first"),
    [
        (nan, "no sample holds NaN or infinite values", 1, "train/3 (not_finite 1)"),
        (outside, "the largest value of every sample is within 0..1", 1, "select/4 (maximum 1.5)"),
        (label, "every label is one of 0..9", 1, "test/5 (label 12)"),
        (copies, "at most 1.0% of train occur in it before", 100, "train/100 (copies_before 1)"),
        (leaked, "at most 0.0% of test are in train too", 1, "test/7 (in_train True)"),
        (missing, "every class occurs in test", 1, "class 3"),
        (rare, "every class makes up at least 5.0% of train", None, None),
        (flat, "every sample has shape 1x8x8", 1797, "train/0 (shape 64)"),
    ],
)
def test_each_planted_fault_is_found_counted_and_named(fault, promise, broken, first):
    splits = load("digits")
    fault(splits)
    result = check(summarise(splits), CONTRACT, describe("digits", splits))
    found = {row["promise"]: row for row in result["checks"] if not row["success"]}
    assert promise in found
    assert len(found) == (2 if fault is label else 1)  # a thirteenth class is also a rare one
    assert not result["success"]
    assert result["checks"][0]["promise"] in found  # the worst stand first
    assert broken is None or found[promise]["broken"] == broken
    assert first is None or found[promise]["first"][0] == first


def poisoned(split):
    x, y = load("digits")[split]
    if split == "train":
        x[3, 0, 0, 0] = float("nan")
    return x, y


def test_good_data_passes_and_its_page_is_kept(home):
    with open_run("v", {}) as run_id:
        data = validate_data.fn("digits", CONTRACT, run_id=run_id)
        assert data == describe("digits", load("digits"))
        assert b"17 of 17 expectations hold" in load_bytes(f"runs:/{run_id}/validation/validation.html")


def test_a_broken_contract_stops_the_run_and_says_what_to_do(home):
    seen = []

    def run():
        with open_run("v", {}) as run_id:
            seen.append(run_id)
            validate_data.fn(f"{__name__}:poisoned", CONTRACT, run_id=run_id)

    with pytest.raises(DataRejected, match=r"NaN.*broken by 1 of 1797, first train/3.*Fill or drop"):
        run()
    assert b"Fill or drop" in load_bytes(f"runs:/{seen[0]}/validation/validation.html")


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "action") and value]


def test_the_page_loads_nothing_and_shows_names_as_text():
    splits = load("digits")
    data = describe("digits", splits).model_copy(update={"name": "<script>alert(1)</script>"})
    assert isinstance(data, Data)
    page = render_validation(check(summarise(splits), CONTRACT, data))
    links = Links()
    links.feed(page)
    assert links.links == []
    assert "script" not in links.tags
    assert "link" not in links.tags
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")


def test_data_that_passed_is_not_asked_again_until_data_contract_or_code_change(home, monkeypatch):
    from tasks import validate

    asked = []
    check = validate.check
    monkeypatch.setattr(validate, "check", lambda *given: asked.append(1) or check(*given))

    def ask(contract: DataContract, move: float = 0.0) -> dict:
        splits = {split: (x + move, y) for split, (x, y) in load("two-kinds").items()}
        return validate.checked(splits, contract, describe("two-kinds", splits))

    wide = DataContract(bounds=(-1, 2))
    first = ask(wide)
    assert ask(wide) == first
    assert len(asked) == 1
    ask(wide, move=1e-3)
    ask(DataContract(bounds=(-1, 3)))
    assert len(asked) == 3
    monkeypatch.setattr(validate, "code_digest", lambda *_: "another")
    ask(wide)
    assert len(asked) == 4
    for _ in range(2):  # what broke the contract is looked at each time
        assert not ask(DataContract(bounds=(0.4, 0.6)))["success"]
    assert len(asked) == 6
    for kept in (home / "validations").iterdir():
        kept.write_text("{")
    ask(wide)
    assert len(asked) == 7
