"""The digests of the code that numbers come from follow its bytes, and no other's."""

import shutil
from pathlib import Path

import pytest

import tasks.metrics.code
from tasks.attacks import config as of_attacks
from tasks.attacks import suites
from tasks.attacks.code import attack_code, code_digest
from tasks.metrics import engine_code


@pytest.mark.parametrize("change", ["a byte", "a name", "one more file", "one file less", "another order"])
def test_the_code_s_digest_follows_every_file_s_bytes_and_name(tmp_path, change):
    folder = tmp_path / "attacks"
    shutil.copytree(Path(suites.__file__).parent, folder)
    assert code_digest(folder) == attack_code()
    first, second = folder / "apgd.py", folder / "pgd.py"
    if change == "a byte":
        first.write_bytes(first.read_bytes()[:-1] + b" ")
    elif change == "a name":
        first.rename(folder / "apgd2.py")
    elif change == "one more file":
        (folder / "sub").mkdir()
        (folder / "sub" / "new.py").touch()
    elif change == "one file less":
        first.unlink()
    else:
        texts = first.read_bytes(), second.read_bytes()
        second.write_bytes(texts[0])
        first.write_bytes(texts[1])
    assert code_digest(folder) != attack_code()


def test_a_suite_whose_attacks_have_other_code_has_another_digest(monkeypatch):
    before = {name: suite.digest for name, suite in suites.SUITES.items()}
    monkeypatch.setattr(of_attacks, "attack_code", lambda: "0" * 16)
    assert all(suite.digest != before[name] for name, suite in suites.SUITES.items())


def test_the_engine_s_code_is_what_numbers_come_from(tmp_path):
    root = tmp_path / "tasks"
    shutil.copytree(Path(tasks.metrics.code.__file__).parents[1], root, ignore=shutil.ignore_patterns("__pycache__"))
    parts, usual = tasks.metrics.code.MEASURES, engine_code()
    assert code_digest(root, parts) == usual
    for name in ("attacks/square.py", "metrics/cell.py", "metrics/signs/masking.py", "statistics.py"):
        text = (root / name).read_text()
        (root / name).write_text(text + "\n")
        assert code_digest(root, parts) != usual, name
        (root / name).write_text(text)
    (root / "publish.py").write_text("")
    assert code_digest(root, parts) == usual
