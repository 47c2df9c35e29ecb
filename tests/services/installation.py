"""infra/compose.yaml as this test machine can run it: its commands and settings, as processes."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "infra" / "compose.yaml"
VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?P<how>:\?|:-)?(?P<rest>[^}]*)\}|\$(?P<bare>\w+)")


class Refused(Exception):
    """A variable that the file asks for is missing or empty."""


def interpolated(value: Any, given: Mapping[str, str]) -> Any:
    """The value with each ${NAME:?message} and ${NAME:-default} filled in. Raises Refused with the message."""
    if isinstance(value, dict):
        return {key: interpolated(inner, given) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolated(inner, given) for inner in value]
    return VARIABLE.sub(lambda found: _filled(found, given), value) if isinstance(value, str) else value


def _filled(found: re.Match[str], given: Mapping[str, str]) -> str:
    if found[0] == "$$":
        return "$"
    name = found["name"] or found["bare"]
    value = given.get(name, "")
    if not value and found["how"] == ":?":
        raise Refused(f"{name}: {found['rest']}")
    return value or (found["rest"] if found["how"] == ":-" else "")


def composed(given: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The file as it stands, or with its variables filled in."""
    read = yaml.safe_load(COMPOSE.read_text())
    return read if given is None else interpolated(read, given)


def as_process(
    service: Mapping[str, Any], places: Mapping[str, str], port: int = 0
) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of a service, where `places` stand for what only containers know.

    Its program is taken from this Python's packages; it listens on that port of this machine.
    """
    words = [str(word) for word in service["command"]]
    first = {"python": [], "redoubt": ["-m", "flows"]}.get(words[0], ["-m", words[0]])
    words = [sys.executable, *first, *words[1:]]
    if "--port" in words:
        words[words.index("--port") + 1] = str(port)
    if "--host" in words:
        words[words.index("--host") + 1] = "127.0.0.1"
    settings = {name: places.get(str(value), str(value)) for name, value in service.get("environment", {}).items()}
    return words, settings
