"""Look whether what is kept still is what was measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tasks.audit import (
    kept,
    of_appendices,
    of_data,
    of_metrics,
    of_model,
    of_registry,
    of_signatures,
    of_time,
    of_version,
    of_weights,
    otherwise,
    reader,
    served,
)
from tasks.errors import EvidenceBroken, WrongInput
from tasks.posture import Record
from tasks.posture.consistency import Read, mismatches
from tasks.posture.console import count
from tasks.posture.evidence import Evidence, chain, digest, to_bytes
from tasks.track import (
    CROWNED,
    EVIDENCE,
    Version,
    aliases,
    registered,
    runs_of,
)


@dataclass(frozen=True)
class Verified:
    """What was looked at of one version, and what does not match."""

    version: int
    evidences: int  # links of its chain that were read
    files: int  # artifacts that were hashed
    signed: int  # links with a signature; with a public key, those whose signature holds
    mismatches: tuple[str, ...]  # the first is the first thing that does not match
    notes: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()  # SHA-256 of each link, the newest first: kept elsewhere, it shows what was dropped

    @property
    def says(self) -> str:
        """The outcome in one line."""
        if not self.evidences and not self.mismatches:
            return f"version {self.version}: nothing to verify, it was never evaluated"
        looked = f"{count(self.evidences, 'link')} of evidence, {count(self.files, 'file')}" + (
            f", {self.signed} signed" if self.signed else ""
        )
        return f"version {self.version}: {'DOES NOT MATCH' if self.mismatches else 'matches'} ({looked})"


@dataclass
class _Walk:
    """One version's chain on the way."""

    version: Version
    records: list[Record] = field(default_factory=list)
    links: list[Evidence] = field(default_factory=list)  # the newest first
    shas: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    signed: int = 0

    def verified(self) -> Verified:
        """What came of it."""
        files = sum(len(link.artifacts) for link in self.links)
        told = tuple(dict.fromkeys(self.wrong)), tuple(dict.fromkeys(self.notes)), tuple(self.shas)
        return Verified(self.version.number, len(self.links), files, self.signed, *told)


def verify_model(
    name: str,
    number: int | None = None,
    *,
    public_key: Path | None = None,
    tell: Callable[[int], None] | None = None,
) -> list[Verified]:
    """Every version of a registered model, or one: its chain of evidence, every file of it, its tags, its data.

    With public_key the links must bear signatures of that key, from the first signed one on. What concerns several
    versions is told of the one that shows it, and only where every version is looked at. tell is called with each
    version before it is looked at. Raises WrongInput for what is not registered.
    """
    there = registered(name)
    known = [version for version in there if number in (None, version.number)]
    if not known:
        raise WrongInput(f"{name!r} has no version{f' {number}' if number else ''} in the registry.")
    data: dict[str, str] = {}
    walks = []
    for version in known:
        if tell is not None:
            tell(version.number)
        walks.append(_walked(version, public_key, data))
    held, runs = aliases(name), runs_of(name)
    for walk in walks:
        walk.wrong += _of_champion(walk, held) + _dropped(walk, runs)
    if number is None:
        _across(name, walks, public_key)
    return [walk.verified() for walk in walks]


def _walked(version: Version, public_key: Path | None, data: dict[str, str]) -> _Walk:
    """The version's chain, read link by link, and what does not match in it."""
    walk = _Walk(version)
    try:
        walk.records = version.records()
    except EvidenceBroken as broken:
        walk.wrong.append(str(broken))
    head = version.tags.get(EVIDENCE)
    if head is None:
        if walk.records:
            walk.wrong.append("its record names evidence, but the tag that names the newest is gone.")
        return walk
    model = served(version)
    try:
        for evidence in chain(head, lambda wanted: kept(version, wanted)):
            walk.links.append(evidence)
            walk.shas.append(digest(to_bytes(evidence)))
            _look(walk, evidence, reader(evidence, model), public_key)
    except EvidenceBroken as broken:
        walk.wrong.append(str(broken))
    if walk.links:
        walk.wrong += of_data(walk.links[0], data, walk.notes)
        walk.notes += otherwise(walk.links[0])
    bear, hold = of_signatures(walk.links, public_key, walk.wrong, walk.notes)
    walk.signed = bear if public_key is None else hold
    for record in walk.records:
        if record.evidence not in walk.shas and not walk.wrong:
            told = f"the record of run {record.run_id} names evidence {record.evidence!r}, which no link has."
            walk.wrong.append(told)
    return walk


def _look(walk: _Walk, evidence: Evidence, read: Read, public_key: Path | None) -> None:
    """Hold one link against its files, its record, its weights, and what tells of it."""
    version, raw = walk.version, to_bytes(evidence)  # what chain() has read is in canonical form
    record = next((r for r in walk.records if r.evidence == digest(raw)), None)
    walk.wrong += [f"run {evidence.run_id}: {said}" for said in mismatches(raw, digest(raw), read, record=record)]
    walk.wrong += of_version(version, evidence) + of_time(evidence) + of_weights(evidence)
    walk.wrong += of_metrics(evidence) + of_appendices(version, evidence, public_key, walk.notes)
    if len(walk.links) == 1:
        walk.wrong += of_registry(version, evidence, record)


def _of_champion(walk: _Walk, held: Mapping[str, int]) -> list[str]:
    """Whether the version, if it is champion, has evidence that says pass. A note where its newest does not."""
    if held.get("champion") != walk.version.number:
        return []
    if not walk.links:
        return ["it is champion, but no evidence says that it passed: roll back, or measure it."]
    outcome = walk.links[0].verdict.outcome
    passes = {link.run_id for link in walk.links if link.verdict.outcome == "pass"}
    crowned = walk.version.tags.get(CROWNED)
    if crowned is not None and passes and crowned not in passes:
        return [f"the tag {CROWNED} names run {crowned}, which is no evidence of a pass of this version."]
    if outcome == "pass":
        return []
    told = f"it is champion, but its newest evidence says {outcome}"
    if passes:  # nothing was changed: another attack has found more since
        walk.notes.append(f"{told}, an older one says pass: harden it, or roll back.")
        return []
    return [f"{told}, none says pass: roll back, or measure it again."]


def _dropped(walk: _Walk, runs: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Evidence of the version that a run names, and no link of its chain is."""
    number = str(walk.version.number)
    lost = [
        (run_id, tags["redoubt.evidence"])
        for run_id, tags in runs.items()
        if tags.get("redoubt.version") == number and tags.get("redoubt.evidence", "") not in ("", *walk.shas)
    ]
    return [f"run {run_id} is evidence {sha}, which is in no chain: tags were set back." for run_id, sha in lost]


def _across(name: str, walks: Sequence[_Walk], public_key: Path | None) -> None:
    """Hold the versions against one another, and the newest evidence of all against the model's own tags."""
    chains = {walk.version.number: walk for walk in walks}
    for walk in walks:
        for link in walk.links:
            champion = link.champion
            other = chains.get(champion.version) if champion else None
            if champion and champion.evidence and (other is None or champion.evidence not in other.shas):
                told = f"its evidence was compared with version {champion.version} by evidence {champion.evidence}"
                walk.wrong.append(f"run {link.run_id}: {told}, which is in no chain of that version.")
        walk.notes += _uncompared(walk, walks)
    newest = max((w for w in walks if w.links and w.links[0].complete), key=lambda w: w.links[0].moment, default=None)
    if newest is None:
        return
    wrong, notes = of_model(name, newest.links[0], public_key)
    newest.wrong += wrong
    newest.notes += notes


def _uncompared(walk: _Walk, walks: Sequence[_Walk]) -> list[str]:
    """A note where the version was first measured without a champion, although an older one had passed."""
    first = walk.links[-1] if walk.links else None
    if first is None or not first.complete or first.champion is not None:
        return []
    older = [w for w in walks if w.version.number < walk.version.number]
    passed = [w.version.number for w in older if any(_passed_before(link, first) for link in w.links)]
    told = f"it was compared with no champion, although version {max(passed, default=0)} had passed before"
    return [told] if passed else []


def _passed_before(link: Evidence, other: Evidence) -> bool:
    return link.verdict.outcome == "pass" and link.moment <= other.moment


def lost_heads(found: Sequence[Verified], heads: Sequence[str]) -> list[str]:
    """A sentence for each digest of evidence, kept elsewhere, that is in no chain any more."""
    there = [sha for each in found for sha in each.chain]
    return [
        f"evidence {head} is in no chain: it was dropped, and what is newer than it."
        for head in heads
        if not any(sha.startswith(head) for sha in there)
    ]
