"""Show a model what fooled its earlier versions: a necessary test beside the fresh attacks, never instead of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from shlex import quote

import numpy as np
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import nn

from tasks.attacks import ThreatModel
from tasks.data import Data, describe, load, load_split
from tasks.errors import EvidenceBroken, WrongInput
from tasks.fetch import fetch_version, network_of
from tasks.ledger import finding_of
from tasks.metrics import RobustnessReport, choose_rows
from tasks.metrics.answers import answers
from tasks.metrics.budget import violation
from tasks.metrics.corpus import Corpus, replay
from tasks.metrics.replayed import ReplayReport
from tasks.metrics.report import packed
from tasks.metrics.transfer import Transfer, transfer
from tasks.models import StoredModel
from tasks.parts import vouched
from tasks.posture.evidence import digest
from tasks.posture.finding import Finding
from tasks.recall import Known, findings_in
from tasks.redact import veiled
from tasks.results import REPLAY, load_adversarial, load_arrays, load_report
from tasks.track import Version, load_bytes, log_dict, log_metrics, timed

CORPUS = "redoubt.corpus."  # a tag of the registered model for each threat model and dataset: where it is, its digest


@task(name="replay", task_run_name="replay-on-{model.stage}", cache_policy=NO_CACHE)
@veiled
def replay_examples(
    name: str, tags: Mapping[str, str], model: StoredModel, data: Data, report: RobustnessReport, *, run_id: str
) -> tuple[ReplayReport, ...]:
    """What the stored adversarial examples of the registered model `name` do to this one: one report a threat model.

    tags are those of the registered model. Empty where nothing is stored. Raises EvidenceBroken for a corpus that was
    changed.
    """
    corpora = [corpus for t in report.threats if (corpus := load_corpus(name, tags, t.threat, data)) is not None]
    if not corpora:
        return ()
    with timed(run_id, f"replay/{model.stage}"):
        network, ledger = network_of(model), findings_in(name, tags)
        x, y = load_split(data, "test")
        rows = choose_rows(len(y), report.clean.n, report.seed)
        correct = torch.from_numpy(report.correct_samples())
        found = []
        for corpus in corpora:
            seen = replay(network, corpus, x[rows], y[rows], rows=rows, seed=report.seed, confidence=report.confidence)
            replayed = ReplayReport(
                threat=corpus.threat,
                corpus=corpus.digest,
                standing=seen.standing,
                fallen=packed(seen.fooled & seen.tried & correct),
                samples=len(rows),
                of_version=seen.of_version,
                pairs=_pairs(ledger, network, corpus.threat, data),
                passes=seen.passes,
            )
            found.append(replayed)
        log_dict(model.run_id, {r.threat.name: r.model_dump(mode="json") for r in found}, REPLAY)
        shares = {f"replay_accuracy/{r.threat.name}": r.standing.value for r in found if r.standing}
        log_metrics(model.run_id, shares, model=model, data=data)
        return tuple(found)


def _pairs(ledger: Sequence[Finding], network: nn.Module, threat: ThreatModel, data: Data) -> dict[str, bool]:
    """For each critical pair that flipped on some version: whether the model withstands what had flipped it."""
    mine = [f for f in ledger if f.kind == "pair" and (f.threat, f.data) == (threat.name, data.name)]
    return {
        finding.subject: not still_works(network, examples_of(finding), finding.subject).any()
        for finding in mine
        if finding.reproducer is not None
    }


@dataclass(frozen=True)
class Shown:
    """A finding's examples, shown to one version."""

    finding: str
    version: int
    fooled: tuple[int, ...]  # rows of the test split whose example still does what was found
    of: int

    @property
    def says(self) -> str:
        """The outcome in one sentence."""
        rows = f" (rows {', '.join(map(str, self.fooled))})" if self.fooled else ""
        return f"{self.finding}: {len(self.fooled)} of {self.of} examples still work on version {self.version}{rows}."


def replay_finding(known: Known, wanted: str, number: int) -> Shown:
    """What a finding's examples do to a version. Raises WrongInput where it has none, EvidenceBroken for bad ones."""
    finding = finding_of(known, wanted)
    arrays = examples_of(finding)
    network = network_of(fetch_version(known.version(number)))
    rows = arrays["rows"][still_works(network, arrays, finding.subject)]
    return Shown(finding.id, number, tuple(rows.tolist()), len(arrays["rows"]))


def examples_of(finding: Finding) -> dict[str, np.ndarray]:
    """The examples that show a finding: rows [F], x and x_adv [F, ...], y and prediction [F].

    Raises WrongInput where it has none, and EvidenceBroken for what does not lie in the ball.
    """
    if finding.reproducer is None:
        write = f"redoubt reattack {quote(finding.name)}"
        raise WrongInput(f"{finding.id} holds no examples. Measure its version again: {write}")
    arrays = load_arrays(load_bytes(finding.reproducer.uri))
    threat = ThreatModel.model_validate_json(str(arrays.pop("threat")))
    wrong = violation(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["x_adv"]), threat)
    if wrong:
        raise EvidenceBroken(f"the examples of {finding.id} are none under {threat}: one {wrong}.")
    return arrays


def still_works(network: nn.Module, arrays: Mapping[str, np.ndarray], pair: str = "") -> np.ndarray:
    """Bool [F]: which examples fool the model; of a critical pair, which it takes for the pair's target."""
    _, answer, _ = answers(network, [torch.from_numpy(arrays["x_adv"])], seed=0)
    works = answer == int(pair.rpartition(" ")[2]) if pair else answer != torch.from_numpy(arrays["y"])
    return np.asarray(works.numpy())


def transfer_matrix(known: Known, versions: Sequence[Version]) -> list[Transfer]:
    """Whose exploits still work on whom, under each threat model of the newest measurement.

    Exploits are those of the versions that were measured in the same way. Raises EvidenceBroken for changed data.
    """
    group = known.history.main
    if group is None:
        raise WrongInput(f"no version of {known.name!r} was evaluated, so there are no exploits to try.")
    newest, records = group.newest, group.by_version()
    splits = load(vouched(newest.data, f"the record of version {newest.version}"))
    if describe(newest.data, splits).digest != newest.data_digest:
        raise EvidenceBroken(f"data {newest.data!r} is not what version {newest.version} was measured on.")
    x, y = splits["test"]
    rows = choose_rows(len(y), newest.samples, newest.seed)
    networks = {version.number: network_of(fetch_version(version)) for version in versions}
    matrices = []
    for threat in load_report(newest.run_id).threats:
        found = {}
        for version in versions:
            if version.number in records:
                arrays = load_adversarial(records[version.number].run_id, threat.threat.name)
                found[version.number] = torch.from_numpy(arrays["rows"]), torch.from_numpy(arrays["x_adv"])
        matrices.append(transfer(networks, found, x[rows], y[rows], rows=rows, threat=threat.threat))
    return matrices


def load_corpus(name: str, tags: Mapping[str, str], threat: ThreatModel, data: Data) -> Corpus | None:
    """The stored examples of a registered model under one threat model on one dataset; None where there are none.

    tags are those of the registered model.
    """
    tag = tags.get(corpus_tag(threat, data))
    if tag is None:
        return None
    where = json.loads(tag)
    corpus = Corpus.from_bytes(load_bytes(where["uri"]))
    if corpus.digest != where["digest"]:
        raise EvidenceBroken(
            f"the stored examples of {name!r} under {threat} have digest {corpus.digest}, the registry says "
            f"{where['digest']}: {where['uri']} was changed."
        )
    return corpus


def corpus_tag(threat: ThreatModel, data: Data) -> str:
    """The registered model's tag that says where its stored examples are."""
    return f"{CORPUS}{threat.digest}.{data.digest}"


def corpora_of(known: Known) -> dict[str, str]:
    """The SHA-256 of what each tag on stored examples says, under the end of its name."""
    ours = {key: value for key, value in known.tags.items() if key.startswith(CORPUS)}
    return {key.removeprefix(CORPUS): digest(value.encode()) for key, value in ours.items()}


def corpus_place(run_id: str, path: str, corpus: Corpus) -> str:
    """What that tag says."""
    return json.dumps({"uri": f"runs:/{run_id}/{path}", "digest": corpus.digest, "examples": len(corpus.rows)})
