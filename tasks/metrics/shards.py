"""An evaluation in units that share nothing: whoever computes one, wherever, puts the same entry into a store."""

import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from tasks.metrics.cell import BLOCK
from tasks.metrics.code import grounds
from tasks.metrics.config import EvaluationConfig
from tasks.metrics.curve import search_block
from tasks.metrics.evaluation import evaluate_threat
from tasks.metrics.inputs import check_options, check_suite, checked
from tasks.metrics.isolation import at_home
from tasks.metrics.outcomes import attacked
from tasks.metrics.pairs import check_pairs
from tasks.metrics.seeds import merged
from tasks.metrics.store import CellStore, Entry, Facts, tensor_digest

T = TypeVar("T")


class Unit(BaseModel, frozen=True, extra="forbid"):
    """One threat model on one block of 512 samples, over every seed, with the curve's search; or a whole threat model.

    The whole asks the signs of soundness, answers them and attacks the critical pairs, from what its blocks came to.
    """

    threat: int = Field(ge=0, description="its place in the config")
    block: int | None = Field(None, ge=0, description="of the samples; empty: the whole of the threat model")

    def __str__(self) -> str:
        return f"{self.threat}-{'whole' if self.block is None else self.block}"


class Shards:
    """The units of one evaluation without a warm start, on these samples x [N, ...], y [N]; weights as of identity().

    Raises WrongInput for a critical pair of a class that the model does not know.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, config: EvaluationConfig, *, weights: str) -> None:
        check_pairs(model, x, config.critical_pairs)
        self.model, self.x, self.y, self.config, self.weights = model, x, y, config, weights
        self._home: tuple[Tensor, Tensor, str] | None = None
        self._checked: set[int] = set()

    def waves(self) -> tuple[list[Unit], list[Unit]]:
        """Every block, then every whole: a whole needs all blocks of its threat model, and is stored with them."""
        threats, blocks = range(len(self.config.threats)), range(-(-len(self.x) // BLOCK))
        return [Unit(threat=t, block=b) for b in blocks for t in threats], [Unit(threat=t, block=None) for t in threats]

    def missing(self, units: Iterable[Unit], store: CellStore) -> list[Unit]:
        """Those that the store does not hold, neither themselves nor the whole that they are part of."""
        units = list(units)
        wholes = {threat: Unit(threat=threat, block=None) for threat in dict.fromkeys(u.threat for u in units)}
        open_ = {threat for threat, whole in wholes.items() if self._held(whole, store) is None}
        return [u for u in units if u.threat in open_ and (u.block is None or self._held(u, store) is None)]

    def needed(self, unit: Unit, store: CellStore) -> list[bytes]:
        """The sealed entries that the unit goes on from: of a whole, all that its blocks have put into the store."""
        if unit.block is not None:
            return []
        blocks = [block for block in self.waves()[0] if block.threat == unit.threat]
        paths = [path for block in blocks for path in self._held(block, store) or []]
        return [path.read_bytes() for path in paths]

    def compute(self, unit: Unit, needed: Iterable[bytes] = ()) -> list[bytes]:
        """The unit's own entries, sealed; none for what cannot be stored because something raised."""
        with tempfile.TemporaryDirectory() as folder:
            store = CellStore(folder)
            for raw in needed:
                self.adopt(raw, store)
            given = set(store.sealed())
            self._put(unit, store)
            return [raw for name, raw in store.sealed().items() if name not in given]

    def adopt(self, raw: bytes, store: CellStore) -> None:
        """Put a sealed entry into the store. Raises EvidenceBroken where it is damaged, or other code has made it."""
        store.adopt(raw, like=grounds(self.model, self.x))

    @torch.inference_mode(False)  # as measure()
    def _put(self, unit: Unit, store: CellStore) -> None:
        """Compute the unit, except what the store holds."""
        config, threat, weights = self.config, self.config.threats[unit.threat], self.weights
        if unit.block is None:
            evaluate_threat(self.model, self.x, self.y, config, threat, store=store, weights=weights)
            return
        suite, (x, y, samples) = config.resolved_suite(), self._samples(unit)
        attack = partial(attacked, self.model, x, y, threat=threat, suite=suite, store=store, weights=weights)
        attack = partial(attack, precision=config.precision, attack_seconds=config.attack_seconds, block=unit.block)
        outcomes = merged([attack(seed=seed) for seed in range(config.seed, config.seed + config.seeds)])
        search = partial(search_block, self.model, x, y, unit.block, outcomes=outcomes, samples=samples)
        with suppress(Exception):  # the model may raise under a gradient; the evaluation meets that again and says so
            search(store=store, weights=weights)

    def _samples(self, unit: Unit) -> tuple[Tensor, Tensor, str]:
        """X, y as measure() takes them under the unit's threat model, and their digest: looked through once for all.

        Raises WrongInput or ModelRejected.
        """
        config, threat = self.config, self.config.threats[unit.threat]
        how = {"seed": config.seed, "precision": config.precision, "attack_seconds": config.attack_seconds}
        check_options(len(self.x), draws=None, block=unit.block, **how)
        if unit.threat not in self._checked:
            checked(self.model, self.x, self.y, threat)
            check_suite(config.resolved_suite(), threat, None, self.x)
            self._checked.add(unit.threat)
        if self._home is None:
            x, y = at_home(self.model, self.x, self.y)
            self._home = x, y, tensor_digest(x, y)
        return self._home

    def _held(self, unit: Unit, store: CellStore) -> list[Path] | None:
        """The unit's files in the store; None where one is missing."""
        looking = _Looking(store.folder, secret=store.secret)
        try:
            self._put(unit, looking)
        except _Absent:
            return None
        return looking.found


class _Absent(BaseException):
    """What is looked for is not in the store. Not an Exception, which attacks and models may raise and we answer."""


class _Looking(CellStore):
    """A store that never computes: it raises _Absent instead."""

    def __init__(self, folder: Path | str, *, secret: bytes) -> None:
        super().__init__(folder, secret=secret)
        self.found: list[Path] = []

    def once(
        self,
        facts: Facts,
        compute: Callable[[], T],  # noqa: ARG002
        *,
        save: Callable[[T], Entry | None],  # noqa: ARG002
        load: Callable[[Entry], T],
    ) -> T:
        """The stored result of these facts. Raises _Absent."""
        entry = self.get(facts)
        if entry is None:
            raise _Absent
        self.found.append(self.path(facts))
        return load(entry)
