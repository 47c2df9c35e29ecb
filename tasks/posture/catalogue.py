"""The languages that threats are named in: a pinned part of MITRE ATLAS, NIST AI 100-2 and the OWASP ML Top 10.

Keyed on the id and the version of the content, never on a name: names have moved. An id that a source retired is still
known, and warnings_for() names its successor.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from tasks.errors import UnknownPart
from tasks.lookup import did_you_mean

Source = Literal["ATLAS", "NIST", "OWASP"]
ATLAS, LATER, NIST, OWASP = "2026.04", "2026.07", "AI 100-2 E2025", "2023 draft"

# Ids that a weakness carries by how it was found.
EVASION = ("AML.T0015", "AML.T0043", "NISTAML.022", "ML01:2023")
BY_GRADIENTS = ("AML.T0043.000", "AML.T0044")
BY_QUERIES = ("AML.T0043.001", "AML.T0040", "NISTAML.025")
BY_TRANSFER = ("AML.T0043.002",)

# Attacks by the access that they need, under the names that a report gives them. Noise, the signs' probes and attacks
# of a user's own are in none: what they show is evasion, and no more is claimed.
WHITE_BOX = frozenset(
    (
        *("apgd-ce", "classes", "crossings", "fab", "fgsm", "fmn", "greedy", "margin", "minimum-norm", "pgd"),
        *("restarts", "sigma-zero"),
    )
)
BLACK_BOX = frozenset({"square", "hopskipjump", "sweep", "escalation: without gradients"})
TRANSFER = frozenset({"transfer"})
ESCALATION = "escalation: "  # what a report puts before a step's name


class Entry(BaseModel, frozen=True, extra="forbid"):
    """One technique, attack, risk or mitigation, as its source names it."""

    source: Source
    id: str
    name: str = Field(description="for people; compare ids")
    version: str = Field(description="of the source's content that id and name were taken from")
    measured_by: str = Field("", description="how Redoubt tests it; empty where it does not")
    retired_into: str = Field("", description="the id that took its place; empty while it stands")
    renamed: str = Field("", description="what later content calls it; empty if nothing else")

    @property
    def key(self) -> tuple[str, str]:
        """The id and the version of the content."""
        return self.id, self.version

    @property
    def mitigation(self) -> bool:
        """Whether it is something to do against a threat, and no threat."""
        return self.id.startswith("AML.M")

    def __str__(self) -> str:
        later = f", since {LATER} {self.renamed}" if self.renamed else ""
        return f"{self.id} {self.name}{later} ({self.source} {self.version})"


# id: name, how Redoubt tests it. Content 2026.04; the names of sub-techniques stand without their parent's.
TECHNIQUES = {
    "AML.T0015": ("Evade AI Model", "robust accuracy: the worst case over a suite of attacks, sample by sample"),
    "AML.T0043": ("Craft Adversarial Data", "every attack of a suite makes such data"),
    "AML.T0043.000": ("White-Box Optimization", "the attacks that follow gradients, and the adaptive escalation"),
    "AML.T0043.001": ("Black-Box Optimization", "the attacks that only ask: square, hopskipjump"),
    "AML.T0043.002": ("Black-Box Transfer", "examples of earlier versions, replayed; the transfer attack"),
    "AML.T0043.003": ("Manual Modification", ""),
    "AML.T0043.004": ("Insert Backdoor Trigger", ""),
    "AML.T0005": ("Create Proxy AI Model", ""),
    "AML.T0005.000": ("Train Proxy via Gathered AI Artifacts", ""),
    "AML.T0005.001": ("Train Proxy via Replication", ""),
    "AML.T0005.002": ("Use Pre-Trained Model", ""),
    "AML.T0018.000": ("Poison AI Model", ""),
    "AML.T0024": ("Exfiltration via AI Inference API", ""),
    "AML.T0024.000": ("Infer Training Data Membership", ""),
    "AML.T0024.001": ("Invert AI Model", ""),
    "AML.T0024.002": ("Extract AI Model", ""),
    "AML.T0040": ("AI Model Inference API Access", "the access that attacks without gradients have"),
    "AML.T0047": ("AI-Enabled Product or Service", ""),
    "AML.T0041": ("Physical Environment Access", ""),
    "AML.T0044": ("Full AI Model Access", "the access that attacks with gradients have"),
    "AML.T0010.002": ("AI Supply Chain Compromise: Data", ""),
    "AML.T0010.003": ("AI Supply Chain Compromise: Model", ""),
    "AML.T0011.000": ("Unsafe AI Artifacts", ""),
}
MITIGATIONS = {
    "AML.M0002": ("Passive AI Output Obfuscation", ""),
    "AML.M0003": ("Model Hardening", "a hardened version is attacked anew, as the version before it was"),
    "AML.M0004": ("Restrict Number of AI Model Queries", ""),
    "AML.M0006": ("Use Ensemble Methods", ""),
    "AML.M0007": ("Sanitize Training Data", ""),
    "AML.M0008": ("Validate AI Model", "every verdict that rests on sound numbers"),
    "AML.M0010": ("Input Restoration", ""),
    "AML.M0014": ("Verify AI Artifacts", ""),
    "AML.M0015": ("Adversarial Input Detection", ""),
    "AML.M0024": ("AI Telemetry Logging", ""),
}
TAXONOMY = {
    "NISTAML.022": ("Evasion", "robust accuracy: the worst case over a suite of attacks, sample by sample"),
    "NISTAML.025": ("Black-Box Evasion", "the attacks that only ask: square, hopskipjump"),
    "NISTAML.013": ("Data Poisoning", ""),
    "NISTAML.023": ("Backdoor Poisoning", ""),
    "NISTAML.024": ("Targeted Poisoning", ""),
    "NISTAML.031": ("Model Extraction", ""),
    "NISTAML.032": ("Reconstruction", ""),
    "NISTAML.033": ("Membership Inference", ""),
    "NISTAML.05": ("Supply Chain", ""),
}
TOP_TEN = {
    "ML01:2023": ("Input Manipulation", "robust accuracy: the worst case over a suite of attacks, sample by sample"),
    "ML02:2023": ("Data Poisoning", ""),
    "ML03:2023": ("Model Inversion", ""),
    "ML04:2023": ("Membership Inference", ""),
    "ML05:2023": ("Model Theft", ""),
    "ML06:2023": ("AI Supply Chain", ""),
    "ML07:2023": ("Transfer Learning", ""),
    "ML08:2023": ("Model Skewing", ""),
    "ML09:2023": ("Output Integrity", ""),
    "ML10:2023": ("Model Poisoning", ""),
}


def _all(source: Source, version: str, rows: dict[str, tuple[str, str]]) -> tuple[Entry, ...]:
    return tuple(
        Entry(source=source, id=id, name=name, version=version, measured_by=how) for id, (name, how) in rows.items()
    )


CATALOGUE: tuple[Entry, ...] = (
    *_all("ATLAS", ATLAS, TECHNIQUES),
    Entry(
        source="ATLAS",
        id="AML.T0020",
        name="Poison Training Data",
        version=ATLAS,
        renamed="Training Data Poisoning",
    ),
    Entry(source="ATLAS", id="AML.T0019", name="Publish Poisoned Datasets", version=ATLAS, retired_into="AML.T0115"),
    Entry(source="ATLAS", id="AML.T0058", name="Publish Poisoned Models", version=ATLAS, retired_into="AML.T0115"),
    Entry(source="ATLAS", id="AML.T0115", name="Publish Poisoned AI Artifacts", version=LATER),
    *_all("ATLAS", ATLAS, MITIGATIONS),
    *_all("NIST", NIST, TAXONOMY),
    *_all("OWASP", OWASP, TOP_TEN),
)
_BY_ID = {entry.id: entry for entry in CATALOGUE}


def entry(id: str) -> Entry:
    """The entry of an id, a retired one too. Raises UnknownPart with the nearest known id."""
    if id not in _BY_ID:
        raise UnknownPart(
            f"unknown threat id {id!r}.{did_you_mean(id.upper(), _BY_ID)} Ids are written as AML.T0043.000 (ATLAS "
            f"{ATLAS}), NISTAML.022 (NIST {NIST}) or ML01:2023 (OWASP {OWASP}); only those in the catalogue are known."
        )
    return _BY_ID[id]


def warnings_for(ids: Sequence[str]) -> tuple[str, ...]:
    """A sentence for each id that its source retired, with its successor. Raises UnknownPart for an unknown one."""
    retired = [found for found in map(entry, dict.fromkeys(ids)) if found.retired_into]
    return tuple(
        f"{old.id} ({old.name}) was retired in {old.source} {LATER}; write {entry(old.retired_into).id} "
        f"({entry(old.retired_into).name}) instead."
        for old in retired
    )


def ids_of(norm: str, attacks: Sequence[str]) -> tuple[str, ...]:
    """The ids of a weakness that these attacks found under this norm, in the catalogue's order.

    attacks: names as in a report's rows. Under "unbounded", a control and no threat, there is no weakness: no ids.
    """
    if norm == "unbounded":
        return ()
    known = set(attacks)
    steps = {name for name in known if name.startswith(ESCALATION)}
    ids = set(EVASION)
    if known & WHITE_BOX or steps - BLACK_BOX:
        ids |= set(BY_GRADIENTS)
    if known & BLACK_BOX:
        ids |= set(BY_QUERIES)
    if known & TRANSFER:
        ids |= set(BY_TRANSFER)
    return in_order(ids)


def in_order(ids: set[str]) -> tuple[str, ...]:
    """These ids as the catalogue orders them; what it does not know is left out."""
    return tuple(id for id in _BY_ID if id in ids)
