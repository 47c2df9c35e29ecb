"""An evaluation in units: computed apart and in any order, they come to the same as the whole, bit for bit."""

import itertools
import random

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tasks.metrics.curve
import tasks.metrics.inputs
import tasks.metrics.outcomes
import tasks.metrics.shards
from tasks.attacks import AttackConfig, ThreatModel
from tasks.errors import EvidenceBroken, WrongInput
from tasks.metrics import CellStore, EvaluationConfig, Shards, Unit, evaluate, identity
from tasks.metrics.isolation import untouched

BLOCK = 40
CONFIG = EvaluationConfig(threats=(ThreatModel(eps=0.1), ThreatModel(norm="l2", eps=0.2)), suite="quick", seeds=2)
NAMES = {"weights_digest": "w", "model_code": "c"}


class Counting(nn.Module):
    """A model that counts its passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.samples = model, 0

    def forward(self, x):
        self.samples += len(x)
        return self.model(x)


def raises(model, x, y, *, threat, rng):
    raise RuntimeError("out of ideas")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    for module in (tasks.metrics.outcomes, tasks.metrics.inputs, tasks.metrics.curve, tasks.metrics.shards):
        monkeypatch.setattr(module, "BLOCK", BLOCK)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Counting(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).requires_grad_(False))


@pytest.fixture(scope="module")
def samples(model):
    x = torch.rand(3 * BLOCK - 10, 6, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    y[::9] = (y[::9] + 1) % 3
    return x, y


def timeless(value):
    """A report without what a clock says."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("seconds", "measured_at")}
    return [timeless(v) for v in value] if isinstance(value, list | tuple) else value


def shards(model, samples, config=CONFIG):
    return Shards(model, *samples, config, weights=identity(weights_digest="w", model_code="c"))


@pytest.mark.parametrize("pairs", [(), ((0, 1),)])
def test_units_from_many_stores_are_found_by_the_evaluation_and_are_the_same_to_the_bit(
    model, samples, tmp_path, pairs
):
    config = CONFIG.model_copy(update={"critical_pairs": pairs})
    alone, outcomes = evaluate(model, *samples, config, **NAMES)
    store, work = CellStore(tmp_path / "cells"), shards(model, samples, config)
    for wave in work.waves():
        units = random.Random(3).sample(wave, len(wave))
        assert set(work.missing(units, store)) == set(units)
        made = [work.compute(unit, work.needed(unit, store)) for unit in units]
        for raw in itertools.chain(*made):
            work.adopt(raw, store)
        assert work.missing(units, store) == []
    model.samples = 0
    together, found = evaluate(model, *samples, config, store=store, **NAMES)
    assert model.samples == 6 * len(pairs)  # the look at the classes of a critical pair
    assert set(together.recalled) == {threat.name for threat in config.threats}  # and else nothing differs
    assert timeless(together.model_dump() | {"recalled": ()}) == timeless(alone.model_dump())
    for one, other in zip(found, outcomes, strict=True):
        for name in ("x_adv", "nearest", "margin", "prediction", "fooled"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_a_whole_goes_on_from_its_blocks_and_attacks_nothing_again(model, samples, tmp_path):
    store, work = CellStore(tmp_path / "cells"), shards(model, samples)
    blocks, (whole, _) = work.waves()
    for unit in blocks:
        for raw in work.compute(unit):
            work.adopt(raw, store)
    model.samples = 0
    assert len(work.compute(whole, work.needed(whole, store))) == 1
    helped, model.samples = model.samples, 0
    assert len(work.compute(whole)) > 1
    assert helped < model.samples / 3


def test_one_missing_block_is_all_that_is_missing(model, samples, tmp_path):
    store, work = CellStore(tmp_path / "cells"), shards(model, samples)
    lost = Unit(threat=1, block=2)
    for unit in work.waves()[0]:
        for raw in work.compute(unit) if unit != lost else []:
            work.adopt(raw, store)
    assert work.missing(work.waves()[0], store) == [lost]


class Effort(TorchDispatchMode):
    """How many numbers torch goes through while it is active; a view goes through none, an index what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = tree_leaves(result if func is torch.ops.aten.index.Tensor else (args, result))
            self.numbers += max((leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor)), default=0)
        return result


@pytest.mark.parametrize("full", [False, True])
def test_twice_the_blocks_take_twice_the_effort_to_look_for(model, tmp_path, full):
    config, efforts = CONFIG.model_copy(update={"threats": CONFIG.threats[:1], "seeds": 1}), []
    for blocks in (8, 16):
        x = torch.rand(blocks * BLOCK, 6, generator=torch.Generator().manual_seed(blocks))
        store, work = CellStore(tmp_path / str(blocks)), shards(model, (x, model(x).argmax(1)), config)
        units = work.waves()[0]
        for raw in itertools.chain(*(work.compute(unit) for unit in units if full)):
            work.adopt(raw, store)
        with Effort() as effort:
            assert work.missing(units, store) == ([] if full else units)
        efforts.append(effort.numbers)
    assert efforts[1] < 2.2 * efforts[0]


def test_a_unit_that_does_not_exist_is_refused(model, samples):
    with pytest.raises(WrongInput, match="block=3 does not exist"):
        shards(model, samples).compute(Unit(threat=0, block=3))


def test_what_was_damaged_or_made_by_other_code_is_not_adopted(model, samples, tmp_path, monkeypatch):
    store, work = CellStore(tmp_path / "cells"), shards(model, samples)
    raw = work.compute(Unit(threat=0, block=0))[0]
    with pytest.raises(EvidenceBroken, match="does not match its digest"):
        work.adopt(raw[:-1] + bytes([raw[-1] ^ 1]), store)
    monkeypatch.setattr("tasks.metrics.code.engine_code", lambda: "0" * 16)
    with pytest.raises(EvidenceBroken, match=r"its engine is .*, ours is '0000000000000000'"):
        work.adopt(raw, store)
    assert len(store) == 0


def test_an_attack_that_raises_leaves_the_unit_to_the_evaluation_which_reports_it(model, samples, tmp_path):
    config = CONFIG.model_copy(update={"attacks": (AttackConfig(name=f"{__name__}:raises"),)})
    work = shards(model, samples, config)
    found = [raw for unit in work.waves()[0] for raw in work.compute(unit)]
    store = CellStore(tmp_path / "cells")
    for raw in found:
        work.adopt(raw, store)
    report, _ = evaluate(model, *samples, config, store=store, **NAMES)
    assert any("out of ideas" in problem for threat in report.threats for problem in threat.problems)


def test_a_critical_pair_of_an_unknown_class_is_refused_before_anything_is_handed_out(model, samples):
    with pytest.raises(WrongInput, match="critical_pairs names class 7"):
        shards(model, samples, CONFIG.model_copy(update={"critical_pairs": ((0, 7),)}))


def test_numbers_do_not_depend_on_torch_s_number_of_threads():
    rng = torch.Generator().manual_seed(0)
    wide = nn.Linear(3000, 2000)  # whose products differ in their last bits from one number of threads to another
    nn.init.normal_(wide.weight, generator=rng)
    x, before, answers = torch.rand(7, 3000, generator=rng), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with untouched(wide) as meter:
                answers.append(meter(x).detach())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
