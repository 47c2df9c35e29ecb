"""Auto-PGD: momentum, and a step that halves itself where progress stalls."""

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tasks.attacks.geometry import ascend, inside, limits, moved, per_sample, sample
from tasks.attacks.search import slope
from tasks.attacks.threat import ThreatModel

MOMENTUM = 0.75  # alpha in the paper
PROGRESS = 0.75  # rho: halve when fewer than this share of steps raised the loss


def checkpoints(steps: int) -> list[int]:
    """The iterations after which the step may halve: at 22 % of the steps, then ever closer (paper, section 3)."""
    points, gap, at = [], max(int(0.22 * steps), 1), 0
    while (at := at + gap) < steps:
        points.append(at)
        gap = max(gap - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return points


def apgd_ce(model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, rng: Generator, steps: int = 100) -> Tensor:
    """Croce and Hein, 2020, https://arxiv.org/abs/2003.01690: x [B, ...], y [B] -> x_adv [B, ...].

    Cross-entropy. Returns for each sample the first misclassified iterate, or else the one of
    highest loss.
    """
    halve_after, within = checkpoints(steps), limits(x, threat)
    x_adv = inside(x, x + sample(x, threat, rng), threat)
    previous, step = x_adv, torch.full((len(x),), 2 * threat.eps, dtype=x.dtype, device=x.device)
    loss, grad, fooled = _loss_and_grad(model, x_adv, y)
    best_x, best_loss, best_grad = x_adv, loss, grad
    found, done = x_adv, fooled
    rises, since = torch.zeros_like(step), 0
    stalled_step, stalled_loss = step.clone(), best_loss

    for i in range(1, steps + 1):
        z = moved(x, ascend(x_adv - x, grad, threat, within, step / threat.eps), threat)
        momentum = MOMENTUM if i > 1 else 1.0
        z = inside(x, x_adv + momentum * (z - x_adv) + (1 - momentum) * (x_adv - previous), threat)
        previous, x_adv, last_loss = x_adv, z, loss
        loss, grad, fooled = _loss_and_grad(model, x_adv, y)

        found = torch.where(per_sample(fooled & ~done, like=x), x_adv, found)
        done = done | fooled
        better = loss > best_loss
        best_x, best_grad = (
            torch.where(per_sample(better, like=x), a, b) for a, b in ((x_adv, best_x), (grad, best_grad))
        )
        best_loss = torch.where(better, loss, best_loss)
        rises, since = rises + (loss > last_loss), since + 1
        if i in halve_after:
            halve = rises < PROGRESS * since
            halve |= (stalled_step == step) & (stalled_loss >= best_loss)
            stalled_step, stalled_loss = step.clone(), best_loss
            step = torch.where(halve, step / 2, step)
            back = per_sample(halve, like=x)
            x_adv, grad = torch.where(back, best_x, x_adv), torch.where(back, best_grad, grad)
            loss = torch.where(halve, best_loss, loss)
            rises, since = torch.zeros_like(step), 0
    return torch.where(per_sample(done, like=x), found, best_x)


def _loss_and_grad(model: nn.Module, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    leaf = x_adv.detach().requires_grad_()
    logits = model(leaf)
    loss = F.cross_entropy(logits.float(), y, reduction="none")
    grad = slope(loss.sum(), leaf)
    return loss.detach(), grad, logits.detach().argmax(1) != y
