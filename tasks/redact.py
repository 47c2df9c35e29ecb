"""Secrets kept out of what people read: what the environment keeps secret never stands in a message or a file."""

import logging
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

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


def told(error: BaseException) -> str:
    """The error's type and text, as they may be kept and sent."""
    return redacted(f"{type(error).__name__}: {error}")


def veiled(work: Callable[P, T]) -> Callable[P, T]:
    """The same function, whose errors tell no secret: whoever schedules it writes their text down."""

    @wraps(work)
    def inner(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return work(*args, **kwargs)
        except Exception as error:
            error.args = tuple(redacted(part) if isinstance(part, str) else part for part in error.args)
            if redacted(str(error)) != str(error):  # its text comes from elsewhere
                raise RuntimeError(told(error)) from error
            raise

    return inner


def veil_logs() -> None:
    """From now on no record of this process's logs tells a secret, whoever writes it and wherever it goes."""
    before = logging.getLogRecordFactory()
    if getattr(before, "veils", False):
        return

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        try:
            said = record.getMessage()
        except (TypeError, ValueError):  # the words do not fit the text; logging itself complains of that
            return record
        if redacted(said) != said:
            record.msg, record.args = redacted(said), ()
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = redacted("".join(traceback.format_exception(record.exc_info[1])).rstrip())
        return record

    factory.veils = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(factory)


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
