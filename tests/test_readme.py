"""Everything that the README tells a stranger to write works as it stands there."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from flows.__main__ import EXIT, cli
from flows.config import parse
from flows.pipeline import posture_pipeline
from flows.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line.partition("#")[0].split() for block in blocks("sh") for line in block.splitlines()]
    return [words for words in lines if words]


@pytest.fixture
def acme(tmp_path, monkeypatch):
    """A folder of the user's with acme.py and acme.yaml in it, as the README writes them."""
    for block in blocks("python") + blocks("yaml"):
        named = re.match(r"# (acme\.\w+)\n", block)
        if named:
            (tmp_path / named[1]).write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("acme", None)


def test_every_python_block_runs(acme):
    rest = [block for block in blocks("python") if not block.startswith("# acme.py")]
    assert len(rest) == 2
    for block in rest:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.server
def test_own_parts_go_the_whole_path(acme, prefect_server, home):
    story = posture_pipeline(parse(yaml.safe_load((acme / "acme.yaml").read_text())))
    assert story.data.name == "acme:wines"
    for chapter in story.chapters:
        assert [row.name for row in chapter.report.threats[0].attacks][-2:] == ["acme:random_noise", "minimum-norm"]
        assert chapter.report.threats[0].problems == ()


def test_every_command_exists():
    assert {words[0] for words in commands()} == {"bash", "redoubt"}
    for words in commands():
        if words[0] == "bash":
            assert (ROOT / words[1]).is_file()
        else:
            assert words[1] in cli.commands
            if words[1] == "run" and not words[2].endswith(".yaml"):
                assert words[2] in RECIPES


def test_every_file_and_link_exists():
    for target in re.findall(r"\]\(([^)]+)\)", README) + re.findall(r"infra/bench/\w+\.py", README):
        assert (ROOT / target).is_file(), target


def test_exit_codes_are_those_of_the_program():
    rows = dict(re.findall(r"^\| (\d) \| ([^|;,]+?)\s*[,;|]", README, re.MULTILINE))
    assert {int(code): name for code, name in rows.items() if int(code) <= 2} == {v: k for k, v in EXIT.items()}
