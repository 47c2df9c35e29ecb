"""The model card: what is known of a version, for people and for tools that read Hugging Face's front matter."""

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import yaml

from tasks.errors import EvidenceBroken
from tasks.posture.evidence import Evidence, digest, to_bytes
from tasks.posture.record import Record, ThreatRecord
from tasks.statistics import Share

MARKS = re.compile(r"([\\`*_{}\[\]<>#|~!&$])")  # what Markdown, a table or HTML could take for its own
FIRST = re.compile(r"^(\d*)([-+=.)])(?=[-+=\s]|$)")  # what would begin a list or a line
LINKED = re.compile(r"@|://|[a-z0-9]\.[a-z]{2}", re.IGNORECASE)  # what readers make a link of without being asked
READING = (
    "Robust accuracy is the share of samples that were right as they are and stayed right under every attack of the "
    "suite: the worst case of each sample. A sample that was wrong from the start counts as not robust.",
    "A floor is held against the lower end of the interval, not against the estimate.",
    "A number that may not be believed is void, however high it is, and is left out of the head of this card.",
)


class FindingLike(Protocol):
    """What the card says of a finding."""

    @property
    def id(self) -> str:
        """What commands name it by."""

    @property
    def state(self) -> str:
        """open, mitigated, verified, regressed or accepted."""

    @property
    def label(self) -> str:
        """What it is, in a few words."""

    @property
    def says(self) -> str:
        """What was seen, a sentence."""

    @property
    def found_at(self) -> object:
        """When."""

    @property
    def first_version(self) -> int:
        """The version in which it was seen first."""


class CoverageLike(Protocol):
    """An entry of a threat catalogue; as text it says what tested it, or why nothing did."""

    @property
    def tested(self) -> bool:
        """Whether a number that may be believed stands behind it."""

    def __str__(self) -> str: ...


def model_card(
    record: Record,
    evidence: Evidence | None = None,
    findings: Sequence[FindingLike] | None = None,
    coverage: Sequence[CoverageLike] | None = None,
    *,
    trained_on: str = "",
) -> str:
    """The card as Markdown, under a head in YAML. No name in it can become a link, a picture or HTML.

    findings and coverage: None says that nobody looked, an empty sequence that there is nothing. trained_on: name and
    digest of the data, where they are known. Raises EvidenceBroken where the evidence is not the record's.
    """
    parts = [
        f"---\n{yaml.safe_dump(_head(record, evidence), sort_keys=False, width=1000)}---",
        f"# Model card: {code(record.name)}, version {record.version}",
        f"**Verdict: {plain(record.verdict)}.** {plain(record.reason)}",
        _section("What was measured", _measured(record, evidence, trained_on)),
        f"## The numbers\n\n{_table(record)}",
        _section("How to read them", [*READING, _compared(record)]),
        _section("What was not tested", _not_tested(coverage)),
        _section("Findings", _findings(findings)),
        _section("Limits", map(plain, limits(record))),
        f"## How to reproduce\n\n```sh\n{_commands(record)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def limits(record: Record) -> list[str]:
    """What the numbers do not say, a plain sentence each."""
    labels = ", ".join(threat.label for threat in record.threats)
    found = [
        f"Robust accuracy holds for these changes of an input only: {labels}. Other changes were not measured.",
        f"It is an upper bound: what suite {record.suite} did not find, another attack may.",
        f"It holds for inputs like the {record.samples} that were measured, of split {record.split} of {record.data}. "
        "The intervals answer for the choice of samples, not for data that drifts.",
        "Changed inputs to the finished model were measured; not poisoned training data, and not what the model gives "
        "away of itself or of its training data.",
    ]
    void = (f"The number under {t.label} is void: {_doubt(t)}." for t in record.threats if not t.sound)
    return [*found, *void]


def evidence_digest(record: Record, evidence: Evidence) -> str:
    """SHA-256 of the evidence's file. Raises EvidenceBroken where the record names another one, or other weights."""
    found = digest(to_bytes(evidence))
    if record.evidence not in ("", found):
        raise EvidenceBroken(f"the record rests on evidence {record.evidence}, but this one hashes to {found}.")
    for what, said, recorded in (
        ("run", evidence.run_id, record.run_id),
        ("weights", evidence.weights.digest, record.weights_digest),
    ):
        if said != recorded:
            raise EvidenceBroken(f"the evidence is of {what} {said}, the record of {what} {recorded}.")
    return found


def plain(text: str) -> str:
    """The text in one line, as Markdown that shows it and does nothing; none where there is nothing to show."""
    words = (code(word) if LINKED.search(word) else MARKS.sub(r"\\\1", word) for word in _words(text))
    return FIRST.sub(r"\1\\\2", " ".join(words)) or "none"


def code(text: str) -> str:
    """The text in one line, in a code span that it cannot close."""
    shown = " ".join(_words(text)).replace("`", "'").replace("|", r"\|")
    return f"`{shown or 'none'}`"


def _words(text: str) -> list[str]:
    """The words; what cannot be printed, such as a line's end or a turn of the writing direction, parts them."""
    return "".join(letter if letter.isprintable() else " " for letter in text).split()


def _section(title: str, lines: Sequence[str] | Iterator[str]) -> str:
    return "\n".join([f"## {title}", "", *(f"- {line}" for line in lines)])


def _head(record: Record, evidence: Evidence | None) -> dict[str, Any]:
    """The front matter. Numbers that may not be believed are left out: whoever reads it sees no doubts."""
    metrics = [{"type": "accuracy", "name": "clean accuracy", **_metric(record.clean, record)}]
    metrics += [
        {"type": "robust_accuracy", "name": f"robust accuracy under {_line(t.label)}", **_metric(t.robust, record)}
        for t in record.threats
        if t.sound
    ]
    dataset = {"name": _line(record.data), "type": _line(record.data), "split": _line(record.split)}
    result = {
        "task": {"type": "classification"},
        "dataset": dataset | {"revision": _line(record.data_digest)},
        "metrics": metrics,
    }
    kinds = {"weights": "pytorch", "graph": "pytorch", "onnx": "onnx"}
    library = {"library_name": kinds[evidence.weights.kind]} if evidence else {}
    return library | {
        "tags": ["adversarial-robustness", "redoubt"],
        "model-index": [{"name": f"{_line(record.name)} version {record.version}", "results": [result]}],
    }


def _metric(share: Share, record: Record) -> dict[str, Any]:
    interval = {"lower": share.lo, "upper": share.hi, "confidence": record.confidence, "samples": share.n}
    return {"value": share.value, "args": interval | {"suite_digest": _line(record.suite_digest)}}


def _line(text: str) -> str:
    return " ".join(_words(text))


def _measured(record: Record, evidence: Evidence | None, trained_on: str) -> Iterator[str]:
    network = f"network {code(evidence.weights.model)}, " if evidence else ""
    yield f"Weights: {network}stage {code(record.stage)}, digest {code(record.weights_digest)}"
    yield f"Trained on: {plain(trained_on or 'not recorded here')}"
    yield (
        f"Measured on: {code(record.data)}, digest {code(record.data_digest)}, split {code(record.split)}, "
        f"{record.samples} samples, seed {record.seed}, {record.seeds} attack seed{'s' * (record.seeds != 1)}"
    )
    yield f"Attacked with: suite {code(record.suite)}, digest {code(record.suite_digest)}"
    if record.warm:
        yield f"The attacks began at stored adversarial examples, digest {code(record.warm)}"
    yield f"Measured at {code(record.measured_at)} in run {code(record.run_id)}, by code {code(record.code)}"
    yield f"With {', '.join(code(f'{name} {value}') for name, value in sorted(record.environment.items()))}"
    named = evidence_digest(record, evidence) if evidence else record.evidence
    yield f"Evidence: {f'SHA-256 {code(named)}' if named else 'none is kept'}"


def _table(record: Record) -> str:
    lines = [
        f"| inputs | accuracy | {100 * record.confidence:g}% interval | floor | may be believed |",
        "|---|---|---|---|---|",
    ]
    lines.append(f"| as they are | {_figures(record.clean)} | | yes |")
    for threat in record.threats:
        believed = "yes" if threat.sound else f"**no, void**: {plain(_doubt(threat))}"
        lines.append(
            f"| changed within {plain(threat.label)} | {_figures(threat.robust)} | {threat.floor:.1%} | {believed} |"
        )
    replays = [(threat.label, threat.replay) for threat in record.threats if threat.replay]
    for label, replay in replays:
        lines.append(f"| stored examples of earlier versions, {plain(label)} | {_figures(replay)} | | no headline |")
    return "\n".join(lines)


def _figures(share: Share) -> str:
    return f"{share.value:.1%} | {share.lo:.1%} to {share.hi:.1%}"


def _doubt(threat: ThreatRecord) -> str:
    return ", ".join(threat.alarms) or "it was not checked, or something broke"


def _compared(record: Record) -> str:
    return (
        "Compare it only with what was measured on the same samples under the same threat models, suite and seeds: "
        f"such measurements share the key {code(record.key)}."
    )


def _not_tested(coverage: Sequence[CoverageLike] | None) -> list[str]:
    if coverage is None:
        return ["No threat catalogue was looked at for this card, so take nothing for tested but the rows above."]
    missing = [plain(str(row)) for row in coverage if not row.tested]
    return missing or [f"Every one of the {len(coverage)} entries that were asked for was tested."]


def _findings(findings: Sequence[FindingLike] | None) -> list[str]:
    if findings is None:
        return ["No ledger of findings was looked at for this card."]
    standing = [
        f"**{plain(found.state)}** {code(found.id)} {plain(found.label)}, in version {found.first_version} first, "
        f"{plain(str(found.found_at))}: {plain(found.says)}"
        for found in findings
        if found.state != "verified"
    ]
    done = len(findings) - len(standing)
    return [*(standing or ["None is open."]), *([f"{done} verified as mended."] if done else [])]


def _commands(record: Record) -> str:
    run, name = (shlex.quote(_line(text)) for text in (record.run_id, record.name))
    return (
        f"redoubt reproduce {run}  # measure it again\nredoubt verify {name}  # hold what is kept against its digests"
    )
