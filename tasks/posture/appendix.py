"""Appendix: the digests of what is written after the evidence, because it tells of it: card, bill, page."""

import json
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from tasks.errors import EvidenceBroken
from tasks.posture.evidence import InRun, Sha256, first_wrong

APPENDIX = "appendix.json"  # its path in the run


class Appendix(BaseModel, frozen=True, extra="forbid"):
    """What tells people of some evidence, by digest. Its own file's SHA-256 stands on the version as a tag."""

    format: Literal["redoubt-appendix/1"] = "redoubt-appendix/1"
    run_id: str = Field(description="that keeps the files")
    evidence: tuple[Sha256, ...] = Field(min_length=1, description="that the files tell of")
    artifacts: dict[InRun, Sha256] = Field(min_length=1, description="path in the run: SHA-256 of the file's bytes")

    def to_bytes(self) -> bytes:
        """The appendix as its file: JSON with sorted keys, without blanks, with a newline at the end."""
        return f"{json.dumps(self.model_dump(), sort_keys=True, separators=(',', ':'))}\n".encode()


def parse_appendix(raw: bytes) -> Appendix:
    """The appendix that a file holds. Raises EvidenceBroken unless it is exactly what to_bytes() writes."""
    try:
        found = Appendix.model_validate_json(raw)
    except ValidationError as error:
        raise EvidenceBroken(f"this is no appendix: {first_wrong(error)}.") from error
    if found.to_bytes() != raw:
        raise EvidenceBroken("this appendix is not in canonical form: whoever wrote it did not use to_bytes().")
    return found
