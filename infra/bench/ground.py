"""The proving ground: models that the engine's bench trains by itself, once, and keeps under .redoubt/bench.

    REDOUBT_DATA=<folder with mnist/, cifar10/ and tabular/> .venv/bin/python infra/bench/ground.py

Attack parameters were chosen on the cases marked `tune`; what the bench reports as strength is said for both kinds.
"""

import io
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.attacks import ThreatModel
from tasks.data import load
from tasks.defences import adversarial, plain
from tasks.home import folder
from tasks.models import TrainingConfig, fit
from tasks.models.networks import digits_cnn, mlp, mnist_cnn

LINF, L2, L1 = (partial(ThreatModel, norm=norm) for norm in ("linf", "l2", "l1"))
Pair = tuple[Tensor, Tensor]


class Block(nn.Module):
    """A pre-activation residual block."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(ins), nn.BatchNorm2d(outs)
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.short = nn.Conv2d(ins, outs, 1, stride, bias=False) if stride > 1 or ins != outs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ins, H, W] -> [B, outs, H / stride, W / stride]."""
        h = F.relu(self.norm1(x))
        return self.short(h) + self.conv2(F.relu(self.norm2(self.conv1(h))))


def resnet(channels: int, width: int = 16) -> nn.Module:
    """A narrow pre-activation ResNet with six convolutions."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, 1, 1, bias=False),
        *(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)),
        *(nn.BatchNorm2d(4 * width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)),
    )


def cifar_cnn() -> nn.Module:
    """Four convolutions and two dense layers."""
    layers: list[nn.Module] = []
    for ins, outs, stride in ((3, 32, 1), (32, 32, 2), (32, 64, 1), (64, 64, 2)):
        layers += [nn.Conv2d(ins, outs, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 64, 128), nn.ReLU(), nn.Linear(128, 10))


def pooled() -> nn.Module:
    """Two convolutions with max pooling and SiLU, normalised over channels."""
    layers: list[nn.Module] = []
    for ins, outs in ((1, 12), (12, 24)):
        layers += [nn.Conv2d(ins, outs, 3, 1, 1), nn.GroupNorm(1, outs), nn.SiLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 49, 64), nn.SiLU(), nn.Linear(64, 10))


def strided() -> nn.Module:
    """Three strided convolutions with GELU and a mean over places."""
    layers: list[nn.Module] = []
    for ins, outs, size in ((1, 16, 5), (16, 32, 3), (32, 64, 3)):
        layers += [nn.Conv2d(ins, outs, size, 2, size // 2), nn.GELU()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64 * 4, 10))


def gated(gate: nn.Module) -> nn.Module:
    """Two strided convolutions and a hidden layer, each behind a gate."""
    hidden = (nn.Conv2d(1, 16, 5, 2, 2), gate, nn.Conv2d(16, 32, 3, 2, 1), gate, nn.Flatten(), nn.Linear(32 * 49, 64))
    return nn.Sequential(*hidden, gate, nn.Linear(64, 10))


def levelled() -> nn.Module:
    """The same with rectifiers, rounded in its middle."""
    hidden = (nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), Levels(), nn.Flatten())
    return nn.Sequential(*hidden, nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10))


class Winners(nn.Module):
    """Only the highest tenth of a layer passes (k-WTA: Xiao et al., 2020, https://arxiv.org/abs/1905.10510)."""

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> [B, ...]."""
        flat = x.flatten(1)
        return (flat * (flat >= flat.topk(flat.shape[1] // 10, dim=1).values[:, -1:])).view_as(x)


class Pruned(nn.Module):
    """Only the fifth of a layer that is largest in magnitude passes, chosen by sorting and gathering."""

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> [B, ...]."""
        flat = x.flatten(1)
        order, kept = flat.detach().abs().argsort(1, descending=True), flat.shape[1] // 5
        sorted_ = torch.cat([flat.gather(1, order[:, :kept]), torch.zeros_like(flat[:, kept:])], 1)
        return sorted_.gather(1, order.argsort(1)).view_as(x)


class Levels(nn.Module):
    """A hyperbolic tangent, rounded to five levels but in training: no slope at all."""

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> [B, ...]."""
        smooth = torch.tanh(x)
        level = (smooth * 2).round() / 2
        return smooth + (level - smooth).detach() if self.training else level


class Routed(nn.Module):
    """A gate sends each image to one of three nets; in training it mixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.ModuleList(gated(act) for act in (nn.ReLU(), nn.ELU(), nn.GELU()))
        self.gate = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(49, 3))

    def forward(self, x: Tensor) -> Tensor:
        """X [B, 1, 28, 28] -> logits [B, 10]."""
        answers, gate = torch.stack([way(x) for way in self.ways], 1), self.gate(x)
        if self.training:
            return (answers * gate.softmax(1).unsqueeze(2)).sum(1)
        return answers.gather(1, gate.argmax(1).view(-1, 1, 1).expand(-1, 1, 10)).squeeze(1)


class Times(nn.Module):
    """The logits, multiplied: a softmax over them saturates."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, C]."""
        return self.model(x) * self.factor


class Quantised(nn.Module):
    """The model behind an input rounded to a few levels: its gradient is zero everywhere."""

    def __init__(self, model: nn.Module, levels: int) -> None:
        super().__init__()
        self.model, self.levels = model, levels

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, C]."""
        return self.model((x * (self.levels - 1)).round() / (self.levels - 1))


def cifar(split: str) -> Pair:
    """CIFAR-10 from its Parquet files: 10,000 images to train on, 1,000 to select, 1,000 to test."""
    root = Path(os.environ["REDOUBT_DATA"]) / "cifar10"
    table = pd.read_parquet(root / ("test.parquet" if split == "test" else "train.parquet"))
    rows = {"train": slice(0, 10_000), "select": slice(10_000, 11_000), "test": slice(0, 1000)}[split]
    image, label = next(c for c in table if c.startswith("im")), next(c for c in table if "label" in c)
    pixels = [np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in table[image][rows]]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    return x.contiguous(), torch.from_numpy(np.array(table[label][rows])).long()


def dataset(name: str) -> Callable[[str], Pair]:
    """The splits by name; MNIST trains on 20,000 of its images."""
    if name == "cifar":
        return cifar
    splits = load(name)
    return lambda split: tuple(part[:20_000] for part in splits[split])


@dataclass(frozen=True)
class Trained:
    """A model of the proving ground: what it is, what it was trained on and how."""

    data: str
    build: Callable[[], nn.Module]
    loss: Callable[..., Tensor]
    threat: ThreatModel
    epochs: int
    lr: float
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model


def _mixed(model: nn.Module, x: Tensor, y: Tensor, **how: object) -> Tensor:
    """Half clean, half adversarial: from scratch at this radius the adversarial loss alone stays at chance."""
    return (plain(model, x, y, **how) + adversarial(model, x, y, **how)) / 2


def _steps(steps: int) -> Callable[..., Tensor]:
    return partial(adversarial, steps=steps)


MODELS = {
    "digits-mlp-adv": Trained("digits", lambda: mlp(64, 10, 128), _steps(7), LINF(eps=0.1), 30, 5e-3),
    "digits-cnn-plain": Trained("digits", digits_cnn, plain, LINF(eps=0.15), 15, 4e-3),
    "digits-saturated": Trained(
        "digits", lambda: mlp(64, 10, 128), plain, LINF(eps=0.15), 15, 4e-3, lambda m: Times(m, 2000)
    ),
    "digits-quantised": Trained(
        "digits", lambda: mlp(64, 10, 128), plain, LINF(eps=0.15), 15, 4e-3, lambda m: Quantised(m, 5)
    ),
    "mnist-cnn-plain": Trained("mnist", mnist_cnn, plain, LINF(eps=0.2), 2, 3e-3),
    "mnist-quantised": Trained("mnist", mnist_cnn, plain, LINF(eps=0.2), 2, 3e-3, lambda m: Quantised(m, 5)),
    "mnist-winners": Trained("mnist", lambda: gated(Winners()), plain, LINF(eps=0.1), 3, 3e-3),
    "mnist-pruned": Trained("mnist", lambda: gated(Pruned()), plain, LINF(eps=0.1), 3, 3e-3),
    "mnist-routed": Trained("mnist", Routed, plain, LINF(eps=0.1), 3, 3e-3),
    "mnist-levels": Trained("mnist", levelled, plain, LINF(eps=0.1), 3, 3e-3),
    "mnist-cnn-adv": Trained("mnist", mnist_cnn, _mixed, LINF(eps=0.2), 5, 3e-3),
    "mnist-cnn-adv-l2": Trained("mnist", mnist_cnn, _steps(7), L2(eps=2.0), 4, 3e-3),
    "mnist-pool-adv-l2": Trained("mnist", pooled, _steps(5), L2(eps=1.5), 3, 3e-3),
    "mnist-gelu-adv-l1": Trained("mnist", strided, _steps(7), L1(eps=8.0), 4, 3e-3),
    "mnist-pool-1step": Trained("mnist", pooled, _steps(1), LINF(eps=0.25), 2, 3e-3),
    "mnist-gelu-1step": Trained("mnist", strided, _steps(1), LINF(eps=0.25), 3, 3e-3),
    "mnist-l2-1step": Trained("mnist", pooled, _steps(1), L2(eps=2.0), 3, 3e-3),
    "mnist-resnet-2step": Trained("mnist", lambda: resnet(1), _steps(2), LINF(eps=0.2), 3, 5e-3),
    "cifar-cnn-adv": Trained("cifar", cifar_cnn, _steps(5), LINF(eps=4 / 255), 12, 2e-3),
    "cifar-resnet-adv": Trained("cifar", lambda: resnet(3), _steps(3), LINF(eps=4 / 255), 10, 1e-2),
    "cifar-resnet-1step": Trained("cifar", lambda: resnet(3), _steps(1), LINF(eps=8 / 255), 8, 1e-2),
    "phishing-mlp-adv": Trained("phishing", lambda: mlp(30, 2, 64), _steps(7), LINF(eps=0.1), 15, 5e-3),
}


def model(name: str) -> nn.Module:
    """The trained model in evaluation mode, trained now if it is not on disk."""
    spec, file = MODELS[name], folder("bench") / f"{name}.safetensors"
    torch.manual_seed(0)
    net = spec.build()
    if file.is_file():
        net.load_state_dict(load_file(file))
    else:
        started, data = time.perf_counter(), dataset(spec.data)
        train, (x, y) = data("train"), data("select")
        config = TrainingConfig(model=name, threat=spec.threat, epochs=spec.epochs, lr=spec.lr)
        fit(net, train, (x[:500], y[:500]), spec.loss, config)
        save_file(net.state_dict(), file)
        sys.stderr.write(f"trained {name} in {time.perf_counter() - started:.0f} s\n")
    return spec.wrap(net).eval()


def images(name: str, n: int, *, first: int = 0) -> Pair:
    """So many test samples of the data that the model was made for, from the first one on."""
    x, y = dataset(MODELS[name].data)("test")
    return x[first : first + n], y[first : first + n]


def main() -> None:
    """Train what is not there yet; print each model's clean accuracy."""
    for name in MODELS:
        net = model(name)
        x, y = images(name, 500)
        with torch.no_grad():
            print(f"{name:20} clean {(net(x).argmax(1) == y).float().mean():.3f}")


if __name__ == "__main__":
    main()
