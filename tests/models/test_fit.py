import sys

import pytest
import torch
from torch import nn

from tasks.attacks import ThreatModel
from tasks.data import two_kinds_of_feature
from tasks.defences import adversarial, plain
from tasks.errors import EvidenceBroken, ModelRejected
from tasks.models import TrainingConfig, build, check_model, fit, from_bytes, to_bytes
from tasks.models.store import digest_of

CONFIG = TrainingConfig(
    model="two-kinds-mlp", threat=ThreatModel(norm="linf", eps=0.1), epochs=4, batch_size=64, lr=1e-2
)
TRAIN, SELECT = (two_kinds_of_feature(split, n=256) for split in ("train", "select"))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
def test_training_after_a_kill_ends_where_it_would_have_ended(tmp_path, monkeypatch, schedule):
    config = CONFIG.model_copy(update={"schedule": schedule})
    whole = build(config.model)
    history = fit(whole, TRAIN, SELECT, adversarial, config)

    module = sys.modules[fit.__module__]
    real, path, calls = module._save, tmp_path / "c.pt", []

    def dies(state, to):
        real(state, to)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_save", dies)
    with pytest.raises(KeyboardInterrupt):
        fit(build(config.model), TRAIN, SELECT, adversarial, config, checkpoint=path)
    resumed = build(config.model)
    assert fit(resumed, TRAIN, SELECT, adversarial, config, checkpoint=path) == history
    assert torch.equal(weights(resumed), weights(whole))
    assert fit(build(config.model), TRAIN, SELECT, adversarial, config, checkpoint=path) == history
    assert len(calls) == config.epochs  # what was trained to the end is not trained again


def test_the_best_epoch_on_select_is_kept_and_patience_ends_training():
    model = build(CONFIG.model)
    config = CONFIG.model_copy(update={"epochs": 60, "patience": 3, "lr": 0.05, "schedule": "constant"})
    history = fit(model, TRAIN, SELECT, plain, config)
    losses = [epoch.select_loss for epoch in history]
    assert len(history) < 60
    assert len(history) - 1 - losses.index(min(losses)) == 3
    with torch.no_grad():
        kept = torch.nn.functional.cross_entropy(model(SELECT[0]), SELECT[1]).item()
    assert kept == pytest.approx(min(losses), abs=1e-5)


def test_seed_decides_the_weights_and_the_world_stays_as_it_was():
    state = torch.get_rng_state()
    one, same, other = (build(CONFIG.model) for _ in range(3))
    fit(one, TRAIN, SELECT, plain, CONFIG)
    fit(same, TRAIN, SELECT, plain, CONFIG)
    fit(other, TRAIN, SELECT, plain, CONFIG.model_copy(update={"seed": 1}))
    assert torch.equal(weights(one), weights(same))
    assert not torch.equal(weights(one), weights(other))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_loss_that_is_no_number_stops_training_with_advice():
    def broken(model, x, y, *, threat, rng):
        return model(x).sum() * float("nan")

    with pytest.raises(ValueError, match="Lower lr"):
        fit(build(CONFIG.model), TRAIN, SELECT, broken, CONFIG)


def test_mixed_precision_trains_on_a_cpu_too():
    history = fit(build(CONFIG.model), TRAIN, SELECT, plain, CONFIG.model_copy(update={"precision": "bf16"}))
    assert history[-1].select_loss < history[0].select_loss


def test_weights_come_back_and_changed_ones_are_refused():
    model = build(CONFIG.model)
    raw = to_bytes(model)
    assert torch.equal(weights(from_bytes(CONFIG.model, raw, digest_of(raw))), weights(model))
    with pytest.raises(EvidenceBroken, match="was changed"):
        from_bytes(CONFIG.model, raw[:-1] + b"\x01", digest_of(raw))


class _Branches(nn.Module):
    def forward(self, x):
        return x[:, :2] if x.sum() > 0 else -x[:, :2]


class _Nan(nn.Module):
    def forward(self, x):
        return x[:, :2] * float("nan")


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        (nn.Linear(4, 3), r"must return logits \[2, 2\]"),
        (nn.Linear(5, 2), "fails on x"),
        (_Nan(), "not finite"),
        (_Branches(), "cannot be exported"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_training(model, hint):
    with pytest.raises(ModelRejected, match=hint):
        check_model(model, "mine", torch.rand(2, 4), 2)


def test_each_further_round_trains_longer_from_another_seed():
    assert CONFIG.for_round(1) == CONFIG
    assert (CONFIG.for_round(3).epochs, CONFIG.for_round(3).seed) == (12, 2)


def test_adversarial_training_leaves_frozen_weights_frozen():
    model = build(CONFIG.model)
    model[0].bias.requires_grad_(False)
    adversarial(model, *TRAIN, threat=CONFIG.threat, rng=torch.Generator().manual_seed(0)).backward()
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
