"""The code of a model tells forwards apart and nothing else."""

import re

from torch import nn

from tasks.models import code_of


class Looks(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10]


def test_the_code_of_a_model_tells_forwards_apart_and_nothing_else(tmp_path, monkeypatch):
    body = "from torch import nn\nclass Base(nn.Module):\n    def forward(self, x):\n        return {}\n"
    for name, result in (("first_acme", "x"), ("second_acme", "2 * x")):
        (tmp_path / f"{name}.py").write_text(body.format(result))
    (tmp_path / "third_acme.py").write_text("import second_acme\nclass Base(second_acme.Base):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    first, second, third = (__import__(name).Base for name in ("first_acme", "second_acme", "third_acme"))
    kinds = [code_of(model) for model in (first(), second(), third(), nn.Linear(2, 2), nn.Linear(2, 3), Looks())]
    assert len(set(kinds)) == len(kinds)
    assert all(re.fullmatch("[0-9a-f]{16}", kind) for kind in kinds)
    assert code_of(nn.Linear(2, 2)) == kinds[3]  # weights do not count
    inherited = code_of(third())
    (tmp_path / "second_acme.py").write_text(body.format("3 * x"))
    assert code_of(third()) != inherited


def test_a_class_without_source_counts_by_its_name():
    made = {"__name__": "typed", "nn": nn}
    exec("class Typed(nn.Module):\n    def forward(self, x):\n        return x\n", made)
    typed = made["Typed"]
    assert code_of(typed()) == code_of(typed())
    typed.__qualname__ = "Other"
    other = code_of(typed())
    typed.__qualname__ = "Typed"
    assert code_of(typed()) != other
