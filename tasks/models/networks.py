"""Small networks for the recipes. A model is a function without arguments that returns an nn.Module."""

from collections.abc import Callable

from torch import nn


def digits_cnn() -> nn.Module:
    """Logits [B, 10] of images [B, 1, 8, 8]: two convolutions and a hidden layer."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def mnist_cnn() -> nn.Module:
    """Logits [B, 10] of images [B, 1, 28, 28]: two strided convolutions and a hidden layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def mlp(features: int, classes: int, width: int = 64) -> nn.Module:
    """Logits [B, classes] of rows [B, features], through two hidden layers."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(features, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def phishing_mlp() -> nn.Module:
    """Logits [B, 2] of the 30 phishing features [B, 30]."""
    return mlp(features=30, classes=2)


def two_kinds_mlp() -> nn.Module:
    """Logits [B, 2] of two_kinds_of_feature [B, 201]."""
    return nn.Sequential(nn.Linear(201, 32), nn.ReLU(), nn.Linear(32, 2))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "digits-cnn": digits_cnn,
    "mnist-cnn": mnist_cnn,
    "phishing-mlp": phishing_mlp,
    "two-kinds-mlp": two_kinds_mlp,
}
