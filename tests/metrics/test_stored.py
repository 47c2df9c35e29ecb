"""Results are stored by what they follow from: never computed twice, never mistaken for others."""

import copy
import errno
import logging
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tasks.metrics.code
import tasks.metrics.curve
import tasks.metrics.foreign
import tasks.metrics.outcomes
import tasks.metrics.report
from tasks.attacks import AttackConfig, Suite, ThreatModel, as_suite
from tasks.attacks import config as of_attacks
from tasks.metrics import CellStore, EvaluationConfig, Outcomes, evaluate, isolation, measure, security_curve
from tasks.metrics.signs import QUESTIONS
from tasks.metrics.store import key, tensor_digest

LINF, L2 = ThreatModel(eps=0.1), ThreatModel(norm="l2", eps=0.2)
BLOCK, CELLS = 40, 3  # so that cells are small here


attack_calls: list[int] = []  # how many samples each call of a test's attack was given
attack_dies_at: list[int] = []  # the call at which it is interrupted


def counted(model, x, y, *, threat, rng):
    attack_calls.append(len(x))
    if len(attack_calls) in attack_dies_at:
        raise KeyboardInterrupt
    return (x + threat.eps / 6 * torch.rand(x.shape, generator=rng)).clamp(*threat.bounds)


def fails_on_the_second_cell(model, x, y, *, threat, rng):
    attack_calls.append(len(x))
    if len(attack_calls) == 2:
        raise RuntimeError("out of ideas")
    return x.clone()


class Counting(nn.Module):
    """A model that counts its passes, and is interrupted at one of them."""

    def __init__(self, model: nn.Module, dies_at: int | None = None) -> None:
        super().__init__()
        self.model, self.passes, self.dies_at = model, 0, dies_at

    def forward(self, x):
        self.passes += 1
        if self.passes == self.dies_at:
            raise KeyboardInterrupt
        return self.model(x)


class Wavering(nn.Module):
    """A model that answers at random."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        z = self.model(x)
        return z + 0.05 * torch.randn(z.shape)


@pytest.fixture(autouse=True)
def _small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.metrics.outcomes, "BLOCK", BLOCK)
    monkeypatch.setattr(tasks.metrics.curve, "BLOCK", BLOCK)
    monkeypatch.setattr(tasks.metrics.foreign, "can_fork", lambda: False)  # these attacks remember their calls
    attack_calls.clear()
    attack_dies_at.clear()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).requires_grad_(False)


@pytest.fixture(scope="module")
def samples(model) -> tuple[Tensor, Tensor]:
    """Some labels are wrong, so that not every sample is attacked."""
    x = torch.rand(BLOCK * CELLS - 10, 6, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    y[::9] = (y[::9] + 1) % 3
    return x, y


def assert_same(one: object, other: object, *, without: tuple[str, ...] = ()) -> None:
    """Two dataclasses are equal, tensors bit for bit."""
    assert type(one) is type(other)
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name in without:
            continue
        if field.name == "attacks":
            assert len(a) == len(b)
            for mine, its in zip(a, b, strict=True):
                assert_same(mine, its, without=without)
        elif isinstance(a, Tensor):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert tensor_digest(a) == tensor_digest(b), field.name
        else:
            assert a == b, field.name


# Outcomes


KINDS = {
    "plain": {},
    "L2": {"threat": L2},
    "warm": {"warm": True},
    "at random": {"at_random": True},
    "reseeded": {"at_random": True, "reseed": True, "draws": 2},
    "in bf16": {"precision": "bf16"},
}
MIXED = (  # every sample once; a few at a time, by turns; one of the user's own
    AttackConfig(name="margin", params={"steps": 3}),
    AttackConfig(name="classes", params={"steps": 3}, samples="drawn", share=0.3),
    AttackConfig(name="restarts", params={"steps": 3}, samples="drawn", share=0.3),
    AttackConfig(name=f"{__name__}:counted"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_outcomes_and_curve_are_the_same_bits_computed_stored_or_mixed(kind, model, samples, store):
    how = {"threat": LINF, "suite": Suite(name="mixed", attacks=MIXED, passes=20)} | KINDS[kind]
    model = Wavering(model) if how.pop("at_random", False) else model
    how |= {"warm": samples[0].flip(0)} if how.pop("warm", False) else {}

    def found(**known) -> tuple[Outcomes, object]:
        outcomes = measure(model, *samples, **how, **known)
        return security_curve(model, *samples, outcomes=outcomes, **known)

    known = {"store": store, "weights": "w"}
    (plain, plain_curve), (cold, cold_curve) = found(), found(**known)
    written = len(store)
    warm, warm_curve = found(**known)
    assert len(store) == written == 2 * CELLS
    for path in sorted(store.folder.iterdir())[::2]:
        path.unlink()
    mixed, mixed_curve = found(**known)
    assert 0 < plain.robust_accuracy < plain.clean_accuracy
    assert plain.problems == ()
    for other, curve in ((cold, cold_curve), (warm, warm_curve), (mixed, mixed_curve)):
        assert_same(other, plain, without=("seconds",))
        assert curve == plain_curve
    seconds = [[attack.seconds for attack in found.attacks[:-1]] for found in (cold, warm, plain)]
    assert seconds[0] == seconds[1] != seconds[2]  # what is stored says what it took at first
    assert len(store) == written
    assert list(store.problems()) == []


def test_no_pass_is_spent_on_a_stored_cell_but_those_of_the_probes(model, samples, store):
    counting = Counting(model)
    known = {"store": store, "weights": "w"}
    cold = measure(counting, *samples, threat=LINF, suite="quick", **known)
    counting.passes = 0
    warm = measure(counting, *samples, threat=LINF, suite="quick", **known)
    shape, at_random = 1, 2
    assert counting.passes == shape + at_random
    assert (warm.forward_samples, warm.backward_samples) == (cold.forward_samples, cold.backward_samples)
    security_curve(counting, *samples, outcomes=warm, **known)
    counting.passes = 0
    security_curve(counting, *samples, outcomes=warm, **known)
    assert counting.passes == 1  # the judge's, on all samples


def test_machines_that_choose_another_precision_share_no_entry_and_others_do(model, samples, store, monkeypatch):
    config = EvaluationConfig(threats=(LINF,), suite="quick")

    def found(*, fast: bool, worth: float) -> tuple[str, tuple[str, ...]]:
        monkeypatch.setattr(isolation, "_fast_bf16", lambda device: fast)
        monkeypatch.setattr(isolation, "WORTH_FLOPS", worth)
        report, (outcomes,) = evaluate(model, *samples, config, store=store, weights_digest="w", model_code="c")
        return outcomes.precision, report.recalled

    assert found(fast=False, worth=1.0) == ("fp32", ())
    assert found(fast=True, worth=1.0) == ("bf16", ())
    assert found(fast=True, worth=1e9) == ("fp32", (LINF.name,))  # too small a model to be asked: as on any machine
    assert found(fast=False, worth=1.0) == ("fp32", (LINF.name,))
    assert found(fast=True, worth=1.0) == ("bf16", (LINF.name,))


def test_an_unchanged_evaluation_asks_the_model_nothing_and_says_the_same(model, samples, store):
    config = EvaluationConfig(threats=(LINF,), suite="quick", seeds=2, critical_pairs=((0, 1),))
    counting, known = Counting(model), {"store": store, "weights_digest": "w", "model_code": "c"}
    plain, plain_outcomes = evaluate(counting, *samples, config)
    cold, cold_outcomes = evaluate(counting, *samples, config, **known)
    counting.passes = 0
    warm, warm_outcomes = evaluate(counting, *samples, config, **known)
    assert counting.passes == 3  # whether the critical pairs name classes that there are
    for one, other, third in zip(warm_outcomes, cold_outcomes, plain_outcomes, strict=True):
        assert_same(one, other)
        assert_same(one, third, without=("seconds",))
    assert (cold.recalled, warm.recalled) == ((), (LINF.name,))
    own = {"measured_at": "", "seconds": 0.0, "recalled": ()}
    assert warm.model_copy(update=own) == cold.model_copy(update=own)
    assert warm.threats[0].spread is not None
    assert warm.threats[0].pairs == plain.threats[0].pairs


# Interrupted


def test_a_measurement_that_is_killed_in_its_second_cell_computes_only_the_rest(model, samples, store):
    suite, known = [f"{__name__}:counted"], {"store": store, "weights": "w"}
    whole = measure(model, *samples, threat=LINF, suite=suite)
    sizes = list(attack_calls)
    attack_calls.clear()
    attack_dies_at.append(2)
    with pytest.raises(KeyboardInterrupt):
        measure(model, *samples, threat=LINF, suite=suite, **known)
    assert len(store) == 1
    attack_calls.clear()
    attack_dies_at.clear()
    again = measure(model, *samples, threat=LINF, suite=suite, **known)
    assert attack_calls == sizes[1:]
    assert_same(again, whole, without=("seconds",))


def test_an_evaluation_that_is_killed_anywhere_goes_on_where_it_stood(model, samples, tmp_path):
    config, whole = EvaluationConfig(threats=(LINF, L2), suite="quick"), Counting(model)
    _, expected = evaluate(whole, *samples, config)
    for quarter in (1, 3):
        store, killed = CellStore(tmp_path / str(quarter)), Counting(model, dies_at=quarter * whole.passes // 4)
        known = {"store": store, "weights_digest": "w"}
        with pytest.raises(KeyboardInterrupt):
            evaluate(killed, *samples, config, **known)
        assert len(store) > 0
        rest = Counting(model)
        _, found = evaluate(rest, *samples, config, **known)
        assert rest.passes < whole.passes * (1.1 - 0.15 * quarter)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, without=("seconds",))


def test_a_cell_whose_attack_raised_is_tried_again(model, samples, store):
    known = {"store": store, "weights": "w"}
    suite = [f"{__name__}:fails_on_the_second_cell"]
    first = measure(model, *samples, threat=LINF, suite=suite, **known)
    assert "out of ideas" in first.problems[0]
    assert len(store) == CELLS - 1
    second = measure(model, *samples, threat=LINF, suite=suite, **known)
    assert second.problems == ()
    assert len(attack_calls) == CELLS + 1


def test_an_evaluation_in_which_something_raised_is_not_stored_as_a_whole(model, samples, store, monkeypatch):
    def tired(probe):
        raise RuntimeError("out of memory")

    config, known = EvaluationConfig(threats=(LINF,), suite="quick"), {"store": store, "weights_digest": "w"}
    with monkeypatch.context() as patched:
        patched.setitem(QUESTIONS, "no gradients", tired)
        report, _ = evaluate(model, *samples, config, **known)
        assert not report.sound
    own = config.model_copy(update={"attacks": (AttackConfig(name=f"{__name__}:fails_on_the_second_cell"),)})
    broken, _ = evaluate(model, *samples, own, **known)
    assert broken.threats[0].problems
    for again in (config, own):
        report, _ = evaluate(model, *samples, again, **known)
        assert report.sound


# Keys


class Asked(BaseException):
    """The key that was asked for first."""


class Asking(CellStore):
    def get(self, facts):
        raise Asked(key(facts))


def asked(run) -> str:
    """The key under which run(store) looks first."""
    with pytest.raises(Asked) as caught:
        run(Asking("nowhere"))
    return str(caught.value)


def pgd(**params) -> AttackConfig:
    return AttackConfig(name="pgd", params=params)


CHANGES = {  # of one cell's measurement: samples x, y of the usual one -> what is different
    "weights": lambda x, y: {"weights": "v"},
    "a parameter of the suite": lambda x, y: {"suite": [pgd(steps=4)]},
    "another attack": lambda x, y: {"suite": [pgd(steps=3), "fgsm"]},
    "how long the suite goes on": lambda x, y: {"suite": Suite(name="custom", attacks=(pgd(steps=3),), again=2.0)},
    "eps": lambda x, y: {"threat": ThreatModel(eps=0.11)},
    "norm": lambda x, y: {"threat": ThreatModel(norm="l2", eps=0.1)},
    "mask": lambda x, y: {"threat": ThreatModel(eps=0.1, mask=(True,) * 5 + (False,))},
    "seed": lambda x, y: {"seed": 1},
    "draws": lambda x, y: {"draws": 2},
    "reseed": lambda x, y: {"reseed": True},
    "precision": lambda x, y: {"precision": "bf16"},
    "start": lambda x, y: {"warm": x.flip(0)},
    "another start": lambda x, y: {"warm": x},
    "one value": lambda x, y: {"x": x.index_put((torch.tensor([7]), torch.tensor([3])), torch.tensor(0.123))},
    "order": lambda x, y: {"x": x.flip(0), "y": y.flip(0)},
    "one label": lambda x, y: {"y": y.index_put((torch.tensor([7]),), (y[7] + 1) % 3)},
    "number of samples": lambda x, y: {"x": x[1:], "y": y[1:]},
    "the parameters' type": lambda x, y: {"as_type": torch.bfloat16},
}
WORLD = {  # what is not the caller's to say
    "engine code": (tasks.metrics.code, "engine_code", lambda: "0" * 16),
    "attack code": (of_attacks, "attack_code", lambda: "0" * 16),
    "torch": (torch, "__version__", "9.9.9"),
}


def key_of_a_cell(model: nn.Module, *samples: Tensor, **change) -> str:
    usual = {"x": samples[0], "y": samples[1], "threat": LINF, "suite": [pgd(steps=3)], "weights": "w"}
    model = copy.deepcopy(model).to(change.pop("as_type", torch.float32))
    return asked(lambda store: measure(model, store=store, **usual | change))


def test_whatever_a_cell_follows_from_gives_it_a_key_of_its_own(model, samples, monkeypatch):
    x, y = samples[0][:BLOCK], samples[1][:BLOCK]
    keys = {"usual": key_of_a_cell(model, x, y)}
    assert key_of_a_cell(model, x.clone(), y.clone()) == keys["usual"]
    assert key_of_a_cell(model, x, y, suite=Suite(name="another name", attacks=(pgd(steps=3),))) == keys["usual"]
    keys |= {name: key_of_a_cell(model, x, y, **change(x, y)) for name, change in CHANGES.items()}
    for name, other in WORLD.items():
        with monkeypatch.context() as patched:
            patched.setattr(*other)
            keys[name] = key_of_a_cell(model, x, y)
    assert len(set(keys.values())) == len(keys), keys


def test_whatever_a_block_of_the_curve_follows_from_gives_it_a_key_of_its_own(model, samples, monkeypatch):
    x, y = (part[:BLOCK] for part in samples)
    found = measure(model, x, y, threat=LINF, suite=[pgd(steps=3)])

    def key_of(x: Tensor = x, y: Tensor = y, weights: str = "w", **change) -> str:
        outcomes = replace(found, **change)
        return asked(lambda store: security_curve(model, x, y, outcomes=outcomes, store=store, weights=weights))

    keys = {"usual": key_of(), "weights": key_of(weights="v"), "eps": key_of(threat=ThreatModel(eps=0.11))}
    assert key_of(suite=as_suite("quick"), fooled=~found.fooled) == keys["usual"]  # the search does not look at them
    keys |= {"seed": key_of(seed=1), "draws": key_of(draws=2), "start": key_of(nearest=(found.nearest + x) / 2)}
    keys |= {"another class's samples": key_of(x=torch.where(found.clean_correct[:, None], x, 1 - x))}
    keys |= {"what was right": key_of(clean_correct=found.clean_correct & (torch.arange(BLOCK) > 5))}
    for name in ("engine code", "torch"):
        with monkeypatch.context() as patched:
            patched.setattr(*WORLD[name])
            keys[name] = key_of()
    assert len(set(keys.values())) == len(keys), keys


def test_two_cells_of_the_same_samples_are_two_results(model, samples, store):
    x, y = (torch.cat([part[:BLOCK], part[:BLOCK]]) for part in samples)
    measure(model, x, y, threat=LINF, suite=["pgd"], store=store, weights="w")
    assert len(store) == 2


def test_a_helper_beside_the_user_s_attack_is_part_of_the_key(model, samples, tmp_path, monkeypatch):
    source = "def scale():\n    return 1\n\n\ndef attack(model, x, y, *, threat, rng):\n    return x * scale()\n"
    module = tmp_path / "helped_attack.py"
    module.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    suite = as_suite(["helped_attack:attack"])
    digest, before = suite.digest, key_of_a_cell(model, *samples, suite=suite)
    module.write_text(source.replace("return 1", "return 2"))
    assert suite.digest == digest
    assert key_of_a_cell(model, *samples, suite=suite) != before


def key_of_an_evaluation(model: nn.Module, x: Tensor, y: Tensor, **change) -> str:
    names = ("weights_digest", "model_code")
    known = {"weights_digest": "w", "model_code": "c"} | {k: change.pop(k) for k in names if k in change}
    config = EvaluationConfig(**{"threats": (LINF,), "suite": "quick"} | change)
    return asked(lambda store: evaluate(model, x, y, config, store=store, **known))


def test_whatever_an_evaluation_follows_from_gives_it_a_key_of_its_own(model, samples, monkeypatch):
    x, y = samples
    keys = {"usual": key_of_an_evaluation(model, x, y)}
    for unlike in ({"threats": (LINF, L2)}, {"samples": 10_000}):
        assert key_of_an_evaluation(model, x, y, **unlike) == keys["usual"]  # the same under this threat model
    changes = [
        {"weights_digest": "v"},
        {"model_code": "d"},
        {"threats": (L2,)},
        {"suite": "standard"},
        {"attacks": (pgd(steps=3),)},
        {"confidence": 0.9},
        {"seed": 1},
        {"seeds": 2},
        {"critical_pairs": ((0, 1),)},
        {"precision": "fp32"},
    ]
    keys |= {str(change): key_of_an_evaluation(model, x, y, **change) for change in changes}
    keys["a label"] = key_of_an_evaluation(model, x, (y + 1) % 3)
    keys["a value"] = key_of_an_evaluation(model, x / 2, y)
    keys["type"] = key_of_an_evaluation(copy.deepcopy(model).bfloat16(), x, y)
    for name, other in WORLD.items():
        with monkeypatch.context() as patched:
            patched.setattr(*other)
            keys[name] = key_of_an_evaluation(model, x, y)
    assert len(set(keys.values())) == len(keys), keys


def test_without_a_digest_of_the_weights_nothing_is_stored(model, samples, store):
    measure(model, *samples, threat=LINF, suite=["pgd"], store=store)
    evaluate(model, *samples, EvaluationConfig(threats=(LINF,), suite="quick"), store=store, model_code="c")
    assert not store.folder.exists()


def test_a_broken_cell_is_computed_anew(model, samples, store):
    known = {"threat": LINF, "suite": ["pgd"], "store": store, "weights": "w"}
    first = measure(model, *samples, **known)
    path = sorted(store.folder.iterdir())[1]
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    again = measure(model, *samples, **known)
    assert_same(again, first, without=("seconds",))
    assert (len(store), list(store.problems())) == (CELLS, [])


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("fault", ["no space", "no space at the end", "a file in the folder's place"])
def test_a_disk_that_takes_nothing_costs_no_result(fault, model, samples, store, monkeypatch, caplog):
    plain = measure(model, *samples, threat=LINF, suite=["pgd"])
    if fault == "a file in the folder's place":
        store.folder.write_text("")
    else:
        monkeypatch.setattr(*((Path, "write_bytes", full) if fault == "no space" else (os, "replace", full)))
    found = measure(model, *samples, threat=LINF, suite=["pgd"], store=store, weights="w")
    assert_same(found, plain, without=("seconds",))
    warnings = [record for record in caplog.records if "cannot store" in record.message]
    assert [record.levelno for record in warnings] == [logging.WARNING] * CELLS
    assert store.folder.is_file() or list(store.folder.iterdir()) == []


def test_a_report_says_which_threat_models_came_whole_from_the_store(model, samples, store):
    known = {"store": store, "weights_digest": "w"}
    first, _ = evaluate(model, *samples, EvaluationConfig(threats=(LINF,), suite="quick"), **known)
    second, _ = evaluate(model, *samples, EvaluationConfig(threats=(L2, LINF), suite="quick"), **known)
    assert (first.recalled, second.recalled) == ((), (LINF.name,))
