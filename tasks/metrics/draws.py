"""Random draws that follow from a key, so that neither order nor worker decides them."""

import hashlib

import torch
from torch import Generator


def generator(device: torch.device, *key: object) -> Generator:
    """A generator whose seed follows from the key alone."""
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")
    return Generator(device=device).manual_seed(seed)
