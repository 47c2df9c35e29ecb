"""What a person sees while a long measurement goes on, and what a pipe does not."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.attacks import SUITES

ROOT = Path(__file__).parents[2]
SCRIPT = """
import torch
from tasks.attacks import ThreatModel
from tasks.data import digits
from tasks.metrics import measure
from tasks.models import build

x, y = digits("train")
threat = ThreatModel(norm="linf", eps=0.1)
found = measure(build("digits-cnn"), x[:600], y[:600], threat=threat, suite="quick", progress=True)
print("blocks are 512")
"""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def told(watched: bool) -> tuple[str, str]:
    """What the script writes on standard error, a terminal if watched, and on standard output."""
    ours, theirs = pty.openpty()
    try:
        ran = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=theirs if watched else subprocess.PIPE,
            env=os.environ | {"COLUMNS": "160", "TERM": "xterm"},
        )
        os.close(theirs)
        seen = b""
        while watched:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # whoever wrote has ended
                break
            seen += piece
            if not piece:
                break
        out, piped = ran.communicate(timeout=120)
        assert ran.returncode == 0, (seen, piped)
        return ESCAPES.sub("", (seen if watched else piped).decode()), out.decode()
    finally:
        os.close(ours)


@pytest.mark.parametrize("watched", [True, False], ids=["terminal", "pipe"])
def test_the_attack_and_what_still_stands_are_told_to_a_terminal_alone(watched):
    seen, out = told(watched)
    assert out == "blocks are 512\n"
    if not watched:
        assert seen == ""
        return
    attacks = set(re.findall(r"quick, L-inf 0\.1: ([\w-]+), \d+ of \d+ stand", seen))
    assert attacks  # which of them are seen, and of which block, is for the clock to say
    assert attacks <= {attack.name for attack in SUITES["quick"].attacks}
    stand = [(int(left), int(of)) for left, of in re.findall(r"(\d+) of (\d+) stand", seen)]
    assert {of for _, of in stand} <= {512, 88}
    assert all(left <= of for left, of in stand)
    assert "100%" in seen
