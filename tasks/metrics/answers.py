"""answers(): what a model says of inputs as they are, judged as every measurement judges."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tasks.metrics.cell import judged
from tasks.metrics.draws import seed_all
from tasks.metrics.isolation import answering, answers_at_random, home, untouched
from tasks.metrics.outcomes import DRAWS


def answers(model: nn.Module, parts: Sequence[Tensor], *, seed: int) -> tuple[Tensor, Tensor, int]:
    """Logits [N, C] and classes [N] of the N samples in all parts, on the CPU, and the passes that it took to know.

    Each part is judged by itself, after the other; by majority of a model that answers at random. The model is left
    exactly as it was. Raises ModelRejected where it does not answer.
    """
    parts = [part.detach().to(*home(model, parts[0])) for part in parts]
    with untouched(model) as meter:
        seed_all(seed)
        with answering(parts[0]):
            meter.draws = DRAWS if answers_at_random(meter, parts[0]) else 1
            judgements = [judged(meter, part) for part in parts]
    logits, classes = (torch.cat(found).cpu() for found in zip(*judgements, strict=True))
    return logits, classes, meter.forward_samples
