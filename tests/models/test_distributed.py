"""Several processes that train one network: the same weights as one process, and none of it lost when one dies."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tasks.attacks import ThreatModel
from tasks.data import two_kinds_of_feature
from tasks.defences import adversarial, plain
from tasks.models import TrainingConfig, build, fit
from tasks.models.distributed import fit_together
from tasks.models.team import ALONE, Team

pytestmark = pytest.mark.timeout(900)
CONFIG = TrainingConfig(
    model="two-kinds-mlp",
    threat=ThreatModel(norm="linf", eps=0.1),
    epochs=3,
    batch_size=33,  # odd, and with 100 samples the last batch holds a single one
    lr=1e-2,
    nproc_per_node=2,
    device="cpu",
)
TRAIN, SELECT = two_kinds_of_feature("train", n=100), two_kinds_of_feature("select", n=1030)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def dies_once(model, x, y, *, threat, rng):
    """A loss whose process is killed in the second epoch, the first time."""
    mark = Path(os.environ["REDOUBT_TEST_MARK"])
    calls = mark.with_suffix(f".{os.getpid()}")
    with calls.open("ab") as file:
        file.write(b".")
    if calls.stat().st_size > 9 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(model, x, y, threat=threat, rng=rng)


def no_number(model, x, y, *, threat, rng):
    return model(x).sum() * float("nan")


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 33])
def test_the_mean_of_the_shares_gradients_is_the_gradient_of_the_batch(size, n):
    rng = torch.Generator().manual_seed(n)
    x, y = torch.randn(50, 5, generator=rng), torch.randint(3, (50,), generator=rng)
    weight, batch = torch.randn(5, 3, generator=rng, requires_grad=True), torch.randperm(50, generator=rng)[:n]

    def gradient(rows: torch.Tensor, share: float) -> torch.Tensor:
        return torch.autograd.grad(share * F.cross_entropy(x[rows] @ weight, y[rows]), weight)[0]

    of_ranks = [gradient(*Team(rank, size).share(batch)) for rank in range(size)]
    torch.testing.assert_close(sum(of_ranks) / size, gradient(batch, 1.0))
    taken = torch.cat([rows for rank in range(size) for rows, share in [Team(rank, size).share(batch)] if share])
    assert sorted(taken.tolist()) == sorted(batch.tolist())


def test_one_process_draws_from_the_shared_generator_and_many_each_from_their_own():
    shared = torch.Generator().manual_seed(0)
    assert ALONE.draws(shared, 0, 1) is shared
    with torch.random.fork_rng():
        drawn = {
            (seed, epoch, rank): torch.rand(1, generator=Team(rank, 2).draws(shared, seed, epoch)).item()
            for seed in (0, 1)
            for epoch in (0, 1)
            for rank in (0, 1)
        }
    assert len(set(drawn.values())) == 8


@pytest.mark.nightly
def test_two_processes_end_with_the_weights_of_one():
    one, two = build(CONFIG.model), build(CONFIG.model)
    history = fit(one, TRAIN, SELECT, plain, CONFIG)
    together = fit_together(two, TRAIN, SELECT, CONFIG)
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-4, atol=1e-5)
    assert (weights(one) - weights(build(CONFIG.model))).abs().max() > 0.005  # they have gone a way
    assert [epoch.select_accuracy for epoch in together] == [epoch.select_accuracy for epoch in history]
    for mine, theirs in zip(together, history, strict=True):
        assert mine.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert mine.select_loss == pytest.approx(theirs.select_loss, rel=1e-4)
    assert {name: value.shape for name, value in two.state_dict().items()} == {
        name: value.shape for name, value in one.state_dict().items()
    }


@pytest.mark.nightly
def test_adversarial_training_in_two_processes_hardens_as_in_one():
    config = CONFIG.model_copy(update={"defence": "adversarial", "epochs": 6, "batch_size": 64})
    train = two_kinds_of_feature("train", n=4096)
    one, two = build(config.model), build(config.model)
    alone = fit(one, train, SELECT, adversarial, config)[-1]
    together = fit_together(two, train, SELECT, config)[-1]
    assert together.select_loss == pytest.approx(alone.select_loss, rel=0.15)
    assert together.select_loss < 0.4  # a model that says nothing has 0.69


@pytest.mark.nightly
def test_a_process_that_is_killed_costs_no_finished_epoch_and_no_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("REDOUBT_TEST_MARK", str(tmp_path / "mark"))
    config = CONFIG.model_copy(update={"defence": f"{__name__}:dies_once"})
    monkeypatch.syspath_prepend(Path(__file__).parent)
    one, two = build(CONFIG.model), build(CONFIG.model)
    history = fit_together(one, TRAIN, SELECT, CONFIG)
    again = fit_together(two, TRAIN, SELECT, config, checkpoint=tmp_path / "c.pt")
    assert (tmp_path / "mark").exists()
    assert again == history
    assert torch.equal(weights(two), weights(one))


@pytest.mark.nightly
def test_a_loss_that_is_no_number_stops_all_processes_with_advice():
    config = CONFIG.model_copy(update={"defence": f"{__name__}:no_number"})
    with pytest.raises(ValueError, match="Lower lr"):
        fit_together(build(CONFIG.model), TRAIN, SELECT, config)
