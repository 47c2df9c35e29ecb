"""Evaluate again from a run's evidence alone: the very same samples must fall."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tasks.audit import otherwise
from tasks.errors import EvidenceBroken, WrongInput
from tasks.parts import vouched
from tasks.posture.evidence import FILE, Evidence, parse
from tasks.results import WARM, load_outcomes
from tasks.track import artifacts, known_run, load_bytes, load_stored


@dataclass(frozen=True)
class Reproduced:
    """An evaluation done again from its evidence alone: rows that came out otherwise, for each threat model."""

    run_id: str
    differing: dict[str, tuple[int, ...]]
    samples: int
    notes: tuple[str, ...] = field(default=())

    @property
    def same(self) -> bool:
        """Whether the very same samples were fooled."""
        return not any(self.differing.values())

    def lines(self) -> list[str]:
        """What a person reads."""
        told = []
        for threat, rows in self.differing.items():
            if rows:
                some = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
                told.append(f"{threat}: {len(rows)} of {self.samples} samples came out otherwise, rows {some}")
            else:
                told.append(f"{threat}: the very same of {self.samples} samples were fooled")
        return told + [f"  note: {note}" for note in self.notes]


def reproduce_run(run_id: str) -> Reproduced:
    """Evaluate again from a run's evidence alone, without the store of cells. Raises EvidenceBroken or WrongInput."""
    from tasks.data import describe, load
    from tasks.evaluate import begin_warm
    from tasks.fetch import network_of
    from tasks.metrics import Corpus, EvaluationConfig, choose_rows, evaluate

    evidence, stored = evidence_of(run_id), load_stored(run_id)
    told = (evidence.data.name, dict(evidence.config), stored.model if stored.kind == "weights" else "")
    vouched(told, f"the evidence of run {run_id}")
    if stored.digest != evidence.weights.digest:
        raise EvidenceBroken(f"model.json names weights {stored.digest}, the evidence {evidence.weights.digest}.")
    splits = load(evidence.data.name)
    now = describe(evidence.data.name, splits)
    if now.digest != evidence.data.digest:
        raise EvidenceBroken(f"data {now.name!r} has digest {now.digest}, measured was on {evidence.data.digest}.")
    config = EvaluationConfig.model_validate(evidence.config["evaluation"])
    if config.resolved_suite().digest != evidence.suite.digest:
        raise EvidenceBroken(
            f"suite {config.suite!r} has digest {config.resolved_suite().digest} here, measured was with "
            f"{evidence.suite.digest}: its attacks or their code have changed since"
            f"{f' commit {evidence.code.commit}' if evidence.code.commit else ''}. Check that out to reproduce it."
        )
    x, y = splits["test"]
    rows = choose_rows(len(y), config.samples, config.seed)
    network = network_of(stored)
    began = (path for path in artifacts(run_id) if path.startswith(f"{WARM}/"))
    corpora = {Path(path).stem: Corpus.from_bytes(load_bytes(f"runs:/{run_id}/{path}")) for path in began}
    warm = begin_warm(corpora, network, x[rows], y[rows], rows=rows, seed=config.seed)
    _, outcomes = evaluate(network, x[rows], y[rows], config, stage=stored.stage, warm=warm)
    differing = {}
    for found in outcomes:
        before = load_outcomes(run_id, found.threat.name)
        other = before["fooled"].astype(bool) != found.fooled.numpy()
        differing[found.threat.name] = tuple(before["row"][np.flatnonzero(other)].tolist())
    return Reproduced(run_id, differing, len(rows), tuple(otherwise(evidence)))


def evidence_of(run_id: str) -> Evidence:
    """The evidence that a run keeps. Raises WrongInput where it keeps none."""
    known_run(run_id)
    if FILE not in artifacts(run_id):
        raise WrongInput(f"run {run_id!r} keeps no evidence. Name the run of an evaluation: `redoubt history NAME`.")
    return parse(load_bytes(f"runs:/{run_id}/{FILE}"))
