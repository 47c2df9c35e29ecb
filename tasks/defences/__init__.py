"""A defence is the loss that a model is trained with: (model, x, y, *, threat, rng) -> scalar.

To add one, write it and name it here, or name it "package.module:function" in the config.
"""

from collections.abc import Callable

from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tasks.attacks import ThreatModel, pgd

Defence = Callable[..., Tensor]


def plain(model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: Generator) -> Tensor:  # noqa: ARG001
    """The cross-entropy on the samples as they are: x [B, ...], y [B] -> scalar. Ignores threat and rng."""
    return F.cross_entropy(model(x), y)


def adversarial(
    model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: Generator, steps: int = 7
) -> Tensor:
    """The cross-entropy on what a short PGD makes of the samples: x [B, ...], y [B] -> scalar.

    Madry et al., 2018, https://arxiv.org/abs/1706.06083. The attack sees the model as it is in training, with
    its weights frozen, which saves their gradients.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        x_adv = pgd(model, x, y, threat=threat, rng=rng, steps=steps)
    finally:
        for p in parameters:
            p.requires_grad_(True)
    return F.cross_entropy(model(x_adv), y)


DEFENCES: dict[str, Defence] = {"adversarial": adversarial, "plain": plain}
