"""merged(): what several attack seeds found, as one: the worst case over all of them, sample by sample."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tasks.metrics.outcomes import AttackOutcome, Outcomes


def merged(outcomes: Sequence[Outcomes]) -> Outcomes:
    """One outcome for each sample: of the first seed that fooled it, or else of the seed that came nearest to it.

    All are of the same samples, threat model and suite, in the order of their seeds, one at least. A sample counts as
    clean only if every seed found it so. Every fall is one attack's, so that the attacks' rows add up to the whole.
    """
    first, n = outcomes[0], len(outcomes[0].fooled)
    if len(outcomes) == 1:
        return first
    fooled = torch.stack([found.fooled for found in outcomes])
    margin = torch.stack([found.margin for found in outcomes])
    taken = torch.where(fooled.any(0), fooled.int().argmax(0), margin.argmin(0))  # [N]: whose outcome counts

    def of_taken(name: str) -> Tensor:
        return torch.stack([getattr(found, name) for found in outcomes])[taken, torch.arange(n)]

    clean = torch.stack([found.clean_correct for found in outcomes]).all(0)
    names = dict.fromkeys(attack.name for found in outcomes for attack in found.attacks)
    return replace(
        first,
        clean_correct=clean,
        fooled=fooled.any(0),
        x_adv=of_taken("x_adv"),
        prediction=of_taken("prediction"),
        nearest=of_taken("nearest"),
        margin=of_taken("margin"),
        attacks=tuple(_attack(name, outcomes, taken, clean) for name in names),
        late=None if any(found.late is None for found in outcomes) else of_taken("late"),
        dropped=None if any(found.dropped is None for found in outcomes) else of_taken("dropped"),
        capped=any(found.capped for found in outcomes),
        straight=min((found.straight for found in outcomes if found.straight is not None), default=None),
        forward_samples=sum(found.forward_samples for found in outcomes),
        backward_samples=sum(found.backward_samples for found in outcomes),
        seconds=sum(found.seconds for found in outcomes),
        draws=max(found.draws for found in outcomes),
        problems=tuple(dict.fromkeys(problem for found in outcomes for problem in found.problems)),
    )


def _attack(name: str, outcomes: Sequence[Outcomes], taken: Tensor, clean: Tensor) -> AttackOutcome:
    """One attack's part over all seeds. It is credited with a sample only where its seed was the first to fool it."""
    parts = [(seed, a) for seed, found in enumerate(outcomes) for a in found.attacks if a.name == name]
    silent = [attack.silent for _, attack in parts if attack.silent is not None]
    return AttackOutcome(
        name=name,
        tried=torch.stack([attack.tried for _, attack in parts]).any(0),
        fooled=torch.stack([attack.fooled & (taken == seed) & clean for seed, attack in parts]).any(0),
        forward_samples=sum(attack.forward_samples for _, attack in parts),
        backward_samples=sum(attack.backward_samples for _, attack in parts),
        seconds=sum(attack.seconds for _, attack in parts),
        error=next((attack.error for _, attack in parts if attack.error), None),
        silent=torch.stack(silent).any(0) if silent else None,
    )
