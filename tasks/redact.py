"""Secrets kept out of what people read: what the environment keeps secret never stands in a message or a file."""

import os
import re
from collections.abc import Iterator, Mapping

SECRET = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|AUTH_STRING|API_KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIAL|WEBHOOK", re.I)
IN_URL = re.compile(r"(?<=://)[^/\s@'\"]*:[^/\s'\"]*@")  # user:password before a host
TOKENS = re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY-----")
SHORTEST = 4  # of a secret: what is shorter would take half of a message with it
HIDDEN = "***"


def redacted(text: str) -> str:
    """The text without the values of the environment's secrets, and without user and password in its URLs."""
    text = TOKENS.sub(HIDDEN, IN_URL.sub(f"{HIDDEN}@", text))
    for value in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def credentials_in(values: object, path: str = "") -> Iterator[str]:
    """Where in nested values something stands that is a credential by its form."""
    if isinstance(values, str):
        if IN_URL.search(values) or TOKENS.search(values):
            yield path or "the value"
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from credentials_in(value, f"{path}.{key}" if path else str(key))
    elif isinstance(values, list | tuple):
        for place, value in enumerate(values):
            yield from credentials_in(value, f"{path}.{place}" if path else str(place))


def _secrets() -> Iterator[str]:
    """What the environment keeps secret: by the name of the variable, and the passwords in its URLs."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= SHORTEST and not name.endswith(("_FILE", "_PATH")):
            yield value
        found = IN_URL.search(value)
        if found:
            password = found[0].partition(":")[2].rstrip("@")
            if len(password) >= SHORTEST:
                yield password
