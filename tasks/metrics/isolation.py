"""Use a model for measuring and leave it exactly as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Meter(nn.Module):
    """The model behind a counter: what passes forward through it, and backward out of it, in samples."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forward_samples = 0
        self.backward_samples = 0

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, C]."""
        self.forward_samples += len(x)
        logits: Tensor = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, grad: Tensor) -> None:
        self.backward_samples += len(grad)


@contextmanager
def untouched(model: nn.Module) -> Iterator[Meter]:
    """The model in evaluation mode with frozen weights, behind a Meter.

    Afterwards mode, requires_grad, .grad, buffers and the global random state are as before. The mode is set
    on every module, because an exported graph refuses .eval().
    """
    modules, parameters = list(model.modules()), list(model.parameters())
    modes = [module.training for module in modules]
    flags = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in parameters]
    buffers = [buffer.clone() for buffer in model.buffers()]
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            for module in modules:
                module.training = False
            for parameter in parameters:
                parameter.requires_grad_(False)
            yield Meter(model)
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
            for parameter, (flag, grad) in zip(parameters, flags, strict=True):
                parameter.requires_grad_(flag)
                parameter.grad = grad
            with torch.no_grad():
                for buffer, before in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(before)
