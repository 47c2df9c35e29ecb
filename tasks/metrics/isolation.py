"""Use a model for measuring and leave it exactly as it was."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tasks.errors import ModelRejected
from tasks.metrics.child import Stopped
from tasks.metrics.draws import seed_all, untouched_draws
from tasks.metrics.switches import exact_kernels

PROBE = 32  # samples that are looked at to know what kind of model this is
WORTH_FLOPS = 5e6  # a sample: below, a pass is bound by overhead and not by arithmetic
THREADS = 1  # of a pass on the CPU: with another number a product of matrices may differ in its last bits
MANY_ROWS = ". It must take any number of rows"
VOTES = 3  # times as many draws as the search averages judge a model that answers at random
SAME_ANSWERS = 0.9  # of the probe's samples get the same class in bfloat16


class Meter(nn.Module):
    """The model behind a counter: what passes forward through it, and backward out of it, in samples.

    With draws > 1 the logits are the mean of so many passes, for models that answer at random (EOT: Athalye et al.,
    2018, https://arxiv.org/abs/1707.07397). With `reseed` every pass has a global seed of its own, drawn from it.
    """

    def __init__(self, model: nn.Module, draws: int = 1) -> None:
        super().__init__()
        self.model, self.draws = model, draws
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        half = parameter is not None and parameter.dtype.itemsize < 4
        self.narrow = parameter.dtype if parameter is not None and half else None  # the search itself needs float32
        self.channels_last = False  # images may lie so in memory, where that is faster
        self.reseed: Generator | None = None
        self.deadline: tuple[float, float] | None = None  # on the monotonic clock, and how many seconds it gave
        self.stopped: dict[str, str] = {}  # attacks that were stopped, and why: not begun again on other samples
        self.forward_samples = 0
        self.backward_samples = 0

    @property
    def passes(self) -> int:
        """Forward and backward, in samples."""
        return self.forward_samples + self.backward_samples

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, C]."""
        if self.draws == 1:
            return self.once(x)
        return torch.stack([self.once(x) for _ in range(self.draws)]).mean(0)

    def once(self, x: Tensor) -> Tensor:
        """One pass: x [B, ...] -> logits [B, C]."""
        if self.deadline is not None and time.monotonic() > self.deadline[0]:
            raise Stopped(f"was stopped after {self.deadline[1]:g} s")
        self.forward_samples += len(x)
        if self.reseed is not None:
            seed_all(int(torch.randint(2**62, (1,), generator=self.reseed)))
        x = x.clone() if self.narrow is None else x.to(self.narrow)  # a model may write into what it is given
        logits: Tensor = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, grad: Tensor) -> None:
        self.backward_samples += len(grad)


class Coarse(nn.Module):
    """The model in bfloat16 where torch deems that safe (autocast), with images laid out as that prefers, if it may."""

    def __init__(self, model: nn.Module, *, channels_last: bool) -> None:
        super().__init__()
        self.model, self.channels_last = model, channels_last

    def forward(self, x: Tensor) -> Tensor:
        """X [B, ...] -> logits [B, C] in float32."""
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            logits: Tensor = self.model(x)
        return logits.float()


class Arithmetic(TorchDispatchMode):
    """Counts the floating-point operations of what is computed while it is active, by torch's own formulas.

    As torch.utils.flop_counter.FlopCounterMode does, which imports all of torch's compiler for it, a second or more.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not to be kept out of a compiler that nobody has imported."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The function's result."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        self.flops += formula(*args, **kwargs, out_val=result) if formula else 0
        return result


def pays_in_bf16(meter: Meter, x: Tensor) -> bool:
    """Whether this model is one whose search runs faster in bfloat16 on this hardware, with nearly the same answers.

    Decided by the arithmetic of one pass and not by a clock, so that a seed gives the same result every time;
    infra/bench/precision.py measures that it pays.
    """
    if meter.narrow is not None or not may_pay_in_bf16(meter, x, (x.device, x.dtype)):
        return False
    part = x[:PROBE]
    with torch.no_grad(), Arithmetic() as counter:
        plain = meter(part)
    if counter.flops < WORTH_FLOPS * len(part):
        return False
    with torch.no_grad():
        coarse = Coarse(meter, channels_last=False)(part)
    same = (coarse.argmax(1) == plain.argmax(1)).float().mean()
    return bool(coarse.isfinite().all()) and same.item() > SAME_ANSWERS


def may_pay_in_bf16(model: nn.Module, x: Tensor, at: tuple[torch.device, torch.dtype]) -> bool:
    """Whether hardware and sizes leave it open, before the model is asked; at: where, and in what, it is searched."""
    device, dtype = at
    if dtype != torch.float32 or not _fast_bf16(device):
        return False
    weights = sum(p.numel() for p in model.parameters())
    return 2 * weights * math.prod(x.shape[2:]) >= WORTH_FLOPS  # no layer has more places than the input


@torch.no_grad()
def takes_channels_last(meter: Meter, x: Tensor) -> bool:
    """Whether the model answers to images laid out as bfloat16 prefers; one that joins features by view() does not."""
    if x.ndim != 4:
        return False
    try:
        Coarse(meter, channels_last=True)(x[:2])
    except Exception:  # where the layout is not to blame, it fails without it too, and says so then
        return False
    return True


@contextmanager
def answering(x: Tensor, *, also: str = "") -> Iterator[None]:
    """Raises ModelRejected in place of whatever the model raises on x [B, ...]; also: what else there is to say."""
    try:
        yield
    except Exception as error:  # whatever a model raises, its author needs the shape that it was given
        raise ModelRejected(f"the model fails on x {list(x.shape)}: {type(error).__name__}: {error}{also}") from error


def answers_at_random(meter: Meter, x: Tensor) -> bool:
    """Whether the model gives two answers to one question."""
    with torch.no_grad():
        first, second = meter.once(x[:PROBE]), meter.once(x[:PROBE])
    return not torch.allclose(first, second, rtol=1e-3, atol=1e-4, equal_nan=True)


def home(model: nn.Module, x: Tensor) -> tuple[torch.device, torch.dtype]:
    """Where the model computes, and in what a search for it does: float32 at least."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), x)
    return parameter.device, torch.promote_types(parameter.dtype, torch.float32)


def at_home(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Where the model computes: x in its precision, y as int64; not those of torch.inference_mode()."""
    device, dtype = home(model, x)
    x, y = (part.clone() if part.is_inference() else part.detach() for part in (x, y))
    # A result follows from the values alone, not from how they lie in memory.
    return x.to(device, dtype).contiguous(), y.to(device).long()


@contextmanager
def untouched(model: nn.Module) -> Iterator[Meter]:
    """The model in evaluation mode with frozen weights, behind a Meter, computing in one thread, by exact kernels.

    Afterwards mode, requires_grad, .grad, buffers, the global random states and torch's settings are as before.
    """
    modules, parameters = list(model.modules()), list(model.parameters())
    with (
        untouched_draws(),
        exact_kernels() if torch.cuda.is_available() else nullcontext(),
        _one_thread(),
        _evaluating(modules),
        _frozen(parameters),
        _held(modules),
        torch.enable_grad(),
    ):
        yield Meter(model)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(THREADS)
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """In evaluation mode, set on every module, because an exported graph refuses .eval(); a frozen program has none."""
    modes = [(module, module.training) for module in modules if hasattr(module, "training")]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    flags = [(p, p.requires_grad, None if p.grad is None else p.grad.clone()) for p in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag, grad in flags:
            parameter.requires_grad_(flag)
            parameter.grad = grad


@contextmanager
def _held(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Afterwards each module's buffers are the same tensors of the same values, and there are no others."""
    held = [(module, dict(module._buffers.items())) for module in modules]
    values = [[None if b is None else b.clone() for b in buffers.values()] for _, buffers in held]
    try:
        yield
    finally:
        for (module, buffers), of_module in zip(held, values, strict=True):
            for name in set(module._buffers.keys()) - buffers.keys():
                delattr(module, name)
            for (name, buffer), value in zip(buffers.items(), of_module, strict=True):
                setattr(module, name, buffer)
                if buffer is not None and value is not None:
                    _set(buffer, value)


@torch.no_grad()
def _set(buffer: Tensor, value: Tensor) -> None:
    if buffer.shape != value.shape:
        buffer.resize_(value.shape)
    buffer.copy_(value)


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
