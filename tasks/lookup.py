"""Find a part by its short name in our table, or by "package.module:object" in yours."""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import TypeVar

from tasks.errors import UnknownPart

T = TypeVar("T")
PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")  # package.module:function, and nothing else
REGISTERED = re.compile(r"models:/(?P<name>[^/@']+)(?:/(?P<number>\d+)|@(?P<alias>[^/@]+))")  # of a model registry


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with the nearest known name, or an empty string."""
    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """table[name], or the object that "package.module:object" names (the working folder is searched too).

    Raises UnknownPart with the nearest known name.
    """
    if name in table:
        return table[name]
    if ":" in name:
        return imported(kind, name)
    raise UnknownPart(
        f"unknown {kind} {name!r}.{did_you_mean(name, table)} Known: {', '.join(sorted(table))}. "
        f"For one of your own write 'package.module:function'."
    )


def imported(kind: str, path: str) -> T:  # type: ignore[type-var]  # the caller knows what the user promised
    """The object at "package.module:object"."""
    if not PATH.fullmatch(path):
        raise UnknownPart(f"{kind} {path!r} is no name of a function. Write 'package.module:function'.")
    module, _, attribute = path.partition(":")
    if os.getcwd() not in sys.path:  # console scripts do not search the folder that they are started in
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        raise UnknownPart(
            f"{kind} {path!r}: there is no module {error.name!r}. Start from the folder that holds it, or install it."
        ) from error
    except AttributeError as error:
        known = [name for name in vars(import_module(module)) if not name.startswith("_")]
        raise UnknownPart(f"{kind} {path!r}: {module} has no {attribute!r}.{did_you_mean(attribute, known)}") from error
