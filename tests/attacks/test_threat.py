"""A threat model is what papers write, and a wrong one says what to write."""

import pytest
from pydantic import ValidationError

from tasks.attacks import ThreatModel


@pytest.mark.parametrize(("written", "eps"), [("8/255", 8 / 255), ("0.03", 0.03), (0.5, 0.5)])
def test_a_radius_can_be_written_as_in_papers(written, eps):
    assert ThreatModel(norm="linf", eps=written).eps == pytest.approx(eps)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"eps": 8}, r"eps='8/255'"),
        ({"eps": "lots"}, "no radius"),
        ({"eps": "1/0"}, "no radius"),
        ({"eps": 0.1, "bounds": (1, 0)}, "smallest value first"),
        ({"eps": -0.1}, r"eps=-0\.1 allows no change.*Write a radius above 0"),
        ({"eps": 0}, r"eps=0 allows no change.*any model would look robust.*'8/255'.*clean_accuracy"),
        ({"eps": 0.0}, r"eps=0\.0 allows no change"),
        ({"eps": "0/255"}, "eps='0/255' allows no change"),
        ({"eps": 0, "norm": "l0"}, "eps=0 allows no change"),
        ({"eps": float("nan")}, "eps=nan is no radius. Write 0.03 or '8/255'"),
        ({"eps": 200, "norm": "l2"}, "8-bit"),
        ({"norm": "unbounded", "scale": (0.5, 0.5)}, "no bound. Leave it out"),
    ],
)
def test_a_wrong_radius_says_what_to_write(values, hint):
    with pytest.raises(ValidationError, match=hint):
        ThreatModel(**{"norm": "linf"} | values)


def test_the_schema_says_that_eps_may_be_text():
    kinds = {option["type"] for option in ThreatModel.model_json_schema()["properties"]["eps"]["anyOf"]}
    assert kinds == {"number", "string"}


@pytest.mark.parametrize(
    ("wide", "narrow", "covers"),
    [
        ({}, {}, True),
        ({"eps": 0.2}, {"eps": 0.1}, True),
        ({"eps": 0.05}, {"eps": 0.1}, False),
        ({"norm": "l2", "eps": 5.0}, {}, False),
        ({"bounds": (-1.0, 1.0)}, {}, True),
        ({"bounds": (0.2, 1.0)}, {}, False),
        ({}, {"mask": (True, False)}, True),
        ({"mask": (True, False)}, {}, False),
        ({"mask": (True, True)}, {"mask": (True, False)}, True),
        ({"mask": (False, True)}, {"mask": (True, False)}, False),
        ({"mask": (True, True)}, {"mask": (True, False, False)}, False),
        ({"scale": (1.0, 2.0)}, {}, False),
        ({"scale": (1.0, 2.0), "eps": 0.3}, {"scale": (1.0, 2.0), "eps": 0.2}, True),
    ],
)
def test_what_one_threat_model_allows_another_may_cover(wide, narrow, covers):
    usual = {"norm": "linf", "eps": 0.1}
    assert ThreatModel(**usual | wide).covers(ThreatModel(**usual | narrow)) is covers
