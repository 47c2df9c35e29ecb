"""Whose word a part's name is: the user's own is obeyed, a store's only where the user has vouched for it.

A name like "package.module:function" makes Python import the module and call the function. In a command, a config file
or a flow's parameters it is the user's own. Read back from a tag or an artifact it is the word of whoever may write
there, and "os:abort" would be obeyed as well.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TypeVar

from tasks.errors import PartRefused
from tasks.lookup import PATH, imported

T = TypeVar("T")
VOUCHED = "REDOUBT_PARTS"  # modules, with all below them, and single functions, with commas: acme,other.nets:small
WORDS = re.compile(r"[^\s,;'\"\[\]{}=]+")
OURS = ("tasks.attacks", "tasks.data", "tasks.defences", "tasks.models")  # whose functions a partial may hold

_named: ContextVar[frozenset[str]] = ContextVar("named", default=frozenset())


@contextmanager
def named(*words: object) -> Iterator[None]:
    """While it is open, the functions that these values name are the user's own word, whoever else names them."""
    token = _named.set(_named.get() | frozenset(_paths(words)))
    try:
        yield
    finally:
        _named.reset(token)


def vouched(values: T, where: str) -> T:
    """The same values, read from a store, if every function in them is one that the user vouches for.

    Nothing is imported for one that is not. where: what they were read from, for the message. Raises PartRefused.
    """
    for path in _paths(values):
        if path not in _named.get() and not _listed(path):
            module = path.partition(":")[0]
            raise PartRefused(
                f"{where} names {path!r}. What a store says is not imported: whoever may write there could run any "
                f"function on this machine. If {module} is yours, say so: {VOUCHED}={module}, before the same command."
            )
    return values


def _listed(path: str) -> bool:
    """Whether REDOUBT_PARTS names the function, or the module that it is defined in."""
    entries = {entry.strip() for entry in os.environ.get(VOUCHED, "").split(",") if entry.strip()}
    if path in entries:
        return True
    modules = {entry for entry in entries if ":" not in entry}
    if not _below(path.partition(":")[0], modules):
        return False
    found: object = imported("part", path)
    while isinstance(found, partial):  # of the user's own making
        found, modules = found.func, modules | set(OURS)
    owner = getattr(found, "__module__", None) or type(found).__module__
    return _below(owner, modules)  # not what the module itself has imported, as in `from os import system`


def _below(module: str, modules: Iterable[str]) -> bool:
    return any(module == entry or module.startswith(f"{entry}.") for entry in modules)


def _paths(values: object) -> Iterator[str]:
    """Every "package.module:function" in nested values, in keys and in the words of a text too."""
    if isinstance(values, str):
        yield from (word for word in WORDS.findall(values) if PATH.fullmatch(word))
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from _paths(key)
            yield from _paths(value)
    elif isinstance(values, list | tuple | set | frozenset):
        for value in values:
            yield from _paths(value)
