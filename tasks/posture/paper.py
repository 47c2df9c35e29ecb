"""The parts that the pages share: one look, one way to turn values into text that no browser runs."""

import base64
import hashlib
import io
import re
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader
from markupsafe import Markup

from tasks.posture.sentences import ranges

HEADER = re.compile("http-equiv", re.IGNORECASE)


def render(template: str, **values: Any) -> str:
    """The page that the template makes of the values. Names and messages are shown as text, whatever they hold."""
    environment = Environment(loader=FunctionLoader(_read), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    style = _style()
    environment.globals.update(style=Markup(style), guard=guard(style), ranges=ranges)
    environment.filters["coded"] = coded
    return environment.get_template(template).render(**values)


def guard(style: str) -> Markup:
    """What a page's head says to the browser: load nothing, run nothing, and apply this one style element only."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return _policy(f"'sha256-{digest}'")


def held(page: str) -> str:
    """A page that comes from a store, with a policy before everything else in it: whoever wrote it, nothing runs.

    What a page's head may tell the browser to do is no longer told: no policy forbids it to lead elsewhere.
    """
    policy = _policy("'unsafe-inline'")
    return f"<!doctype html>\n{policy}\n{HEADER.sub('data-was', page)}"


def _policy(styles: str) -> Markup:
    rules = f"default-src 'none'; img-src data:; style-src {styles}; base-uri 'none'; form-action 'none'"
    return Markup(
        f'<meta http-equiv="Content-Security-Policy" content="{rules}">\n<meta name="referrer" content="no-referrer">'
    )


def coded(text: str) -> Markup:
    """The text, what stands between backticks as code."""
    parts = text.split("`")
    even = len(parts) % 2  # an odd number of backticks: the last one is text
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 and (even or place < len(parts) - 1) else part
        for place, part in enumerate(parts)
    )


def png(array: np.ndarray) -> str:
    """An image [C, H, W] in 0..1, C 1 or 3, as a data URI."""
    from PIL import Image

    pixels = (np.clip(array, 0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    raw = io.BytesIO()
    image.save(raw, format="png")
    return "data:image/png;base64," + base64.b64encode(raw.getvalue()).decode()


def _style() -> str:
    """The report page's look, and what only these pages need."""
    shared = files("tasks").joinpath("evidence/style.css")  # by path: importing tasks.evidence would load torch
    return shared.read_text(encoding="utf-8") + _read("style.css")


def _read(name: str) -> str:
    return files("tasks.posture").joinpath(name).read_text(encoding="utf-8")
