"""What an attack returned, measured: no budget is believed."""

from torch import Tensor

from tasks.attacks import ThreatModel
from tasks.attacks.geometry import SLACK, allowed, distance


def violation(x: Tensor, x_adv: Tensor, threat: ThreatModel) -> str | None:
    """What is wrong with x_adv: shape, values, box or budget; None if nothing is."""
    if x_adv.shape != x.shape:
        return f"returned shape {list(x_adv.shape)} for {list(x.shape)}"
    x_adv = x_adv.detach().to(x)
    if not x_adv.isfinite().all():
        return "returned values that are not finite"
    low, high = threat.bounds
    slack = SLACK * (high - low)
    if x_adv.amin() < low - slack or x_adv.amax() > high + slack:
        return f"left the box {low:g}..{high:g}: returned {x_adv.amin():.4g}..{x_adv.amax():.4g}"
    moved = distance(x, x_adv, threat)
    if (moved > allowed(x, x_adv, threat)).any():
        return f"left the ball: moved {moved.amax():.6g}, eps is {threat.eps:g}"
    return None
