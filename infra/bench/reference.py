"""The reference: AutoAttack, standard, from `pyautoattack`, its passes and CPU seconds counted as ours are.

Croce and Hein, 2020, https://arxiv.org/abs/2003.01690. Where its targeted losses are undefined, with fewer than four
classes, the untargeted members run in their place, as its authors advise.
"""

import copy
import hashlib
import json
import logging
import time
import warnings
from dataclasses import asdict, dataclass
from functools import cache

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from tasks.attacks import ThreatModel
from tasks.home import folder
from tasks.metrics.isolation import Meter

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass(frozen=True)
class Spent:
    """What an evaluation found and what it cost. Passes are samples through the model."""

    standing: list[bool]
    forward_samples: int
    backward_samples: int
    cpu_seconds: float

    @property
    def robust(self) -> float:
        """Robust accuracy."""
        return sum(self.standing) / len(self.standing)

    @property
    def passes(self) -> int:
        """Forward and backward together."""
        return self.forward_samples + self.backward_samples


def reference(model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, seed: int, kept: bool) -> Spent:
    """The reference's result; with `kept`, from an earlier run of this bench where there is one."""
    state = b"".join(v.numpy().tobytes() for v in (*model.state_dict().values(), x, y))
    key = hashlib.sha256(state + f"{threat.digest} {seed}".encode()).hexdigest()[:16]
    file = folder("bench") / f"reference-{key}.json"
    if kept and file.is_file():
        return Spent(**json.loads(file.read_text()))
    spent = _run(model, x, y, threat, seed)
    file.write_text(json.dumps(asdict(spent)))
    return spent


def _run(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> Spent:
    meter = Meter(copy.deepcopy(model).eval())
    images = x if x.ndim == 4 else x.flatten(1)[:, :, None, None]  # it takes images only
    net = meter if x.ndim == 4 else _Rows(meter, x.shape[1:])
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    few = {"version": "custom", "attacks": ["apgd-ce", "fab", "square"]} if classes < 4 else {"version": "standard"}
    _quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle = AutoAttack(net, norm=NORMS[threat.norm], eps=threat.eps, seed=seed, device="cpu", **few)
        if 4 <= classes < 10:
            oracle.apgd_targeted.n_target_classes = oracle.fab.n_target_classes = classes - 1
        started = time.process_time()
        x_adv, _ = oracle.run_standard_evaluation(images, y, batch_size=256 if x[0].numel() > 500 else 1000)
        took = time.process_time() - started
    counted = meter.forward_samples, meter.backward_samples
    with torch.no_grad():
        standing = torch.cat([model(part) for part in x_adv.view_as(x).split(256)]).argmax(1) == y
    return Spent(standing.tolist(), *counted, took)


class _Rows(nn.Module):
    def __init__(self, model: nn.Module, shape: torch.Size) -> None:
        super().__init__()
        self.model, self.shape = model, shape

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.reshape(-1, *self.shape))


@cache
def _quiet() -> None:
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
