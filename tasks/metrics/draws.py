"""Random draws that follow from a key, so that neither order nor worker decides them."""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Generator


def generator(device: torch.device, *key: object) -> Generator:
    """A generator whose seed follows from the key alone."""
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")
    return Generator(device=device).manual_seed(seed)


def seed_all(seed: int) -> None:
    """Seed what a model may draw from: the global generators of torch, numpy and Python.

    Without an accelerator torch.manual_seed would write the whole stack down for three of them, 2 ms a call.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed % 2**64)


def drawn() -> dict[str, Any]:
    """Where the global generators of numpy and Python stand, as JSON can hold it."""
    kind, key, *rest = np.random.get_state()
    return {"numpy": [str(kind), np.asarray(key).tolist(), *rest], "python": random.getstate()}


def draw_on(states: Mapping[str, Sequence[Any]]) -> None:
    """Let these generators go on from where drawn() saw them."""
    version, key, rest = states["python"]
    random.setstate((version, tuple(key), rest))
    np.random.set_state(tuple(states["numpy"]))


@contextmanager
def untouched_draws() -> Iterator[None]:
    """Afterwards the global generators of torch, on every GPU too, of numpy and of Python are as before.

    No GPU is waked for it: one that sleeps has no state yet, and begins with the one that follows from the global seed.
    """
    states, awake = drawn(), torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if awake else []
    try:
        with torch.random.fork_rng(devices=devices, device_type="cuda"):
            yield
    finally:
        draw_on(states)
        if torch.cuda.is_available() and not awake:
            torch.cuda.manual_seed_all(torch.initial_seed())
