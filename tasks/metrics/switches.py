"""What torch keeps for the whole process of how a GPU computes, set for measuring and given back."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch


@contextmanager
def exact_kernels() -> Iterator[None]:
    """A GPU's convolutions and products of matrices in float32 proper, not TF32, by kernels that repeat to the bit.

    Afterwards torch's settings are as before. torch.use_deterministic_algorithms() is none of them: it raises, or
    warns, wherever an operation has no such kernel. What may be TF32 is said twice in torch, and where an older and a
    newer setting differ the older cannot be read; while measuring they agree, so that a model may read either.
    """
    backends: Any = torch.backends
    cudnn = backends.cudnn
    parts = [backends.cuda.matmul, backends.mkldnn.matmul, cudnn.conv, cudnn.rnn]
    chosen, newer = (cudnn.deterministic, cudnn.benchmark), [part.fp32_precision for part in parts]
    _set(parts, "ieee")
    products, convolutions = torch.get_float32_matmul_precision(), True
    with suppress(RuntimeError):  # which says that it differs from what the parts have just been set to
        convolutions = cudnn.allow_tf32
    try:
        cudnn.deterministic, cudnn.benchmark = True, False
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32 = False
        _set(parts, "ieee")
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = chosen
        torch.set_float32_matmul_precision(products)
        cudnn.allow_tf32 = convolutions
        _set(parts, *newer)


def _set(parts: list[Any], *precisions: str) -> None:
    """Set each part to its precision, or all to the only one."""
    for i, part in enumerate(parts):
        part.fp32_precision = precisions[i % len(precisions)]
