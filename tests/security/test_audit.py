"""The checks that infra/audit makes: secrets in tracked files, and who was asked about vulnerabilities."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "infra"))
from leaks import found_in, tracked  # noqa: E402
from vulnerable import judged  # noqa: E402


def test_no_tracked_file_holds_a_secret():
    assert len(tracked()) > 100
    assert found_in(tracked()) == []


SECRETS = {
    "aws": "key = 'AKIA" + "IOSFODNN7EXAMPLE'",
    "basic auth": "uri: https://user:" + "hunter2hunter2@mlflow.example",
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "password": "password = " + "'correct-horse-battery'",  # pragma: allowlist secret
    "github": "t = 'ghp_" + "a1B2" * 9 + "'",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_planted_secret_is_found_and_not_repeated(tmp_path, kind):
    file = tmp_path / "planted.py"
    file.write_text(f"x = 1\n{SECRETS[kind]}\n")
    (found, *_) = found_in([file])
    assert found.startswith(f"{file}:2: ")
    assert SECRETS[kind][-10:] not in found


def test_a_line_that_says_so_is_left_alone(tmp_path):
    file = tmp_path / "planted.py"
    file.write_text(SECRETS["password"] + "  # pragma: allowlist secret\n")
    assert found_in([file]) == []


FINE = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (1)"}


@pytest.mark.parametrize(
    ("rows", "code", "word"),
    [
        ([FINE], 0, "none known in 1"),
        ([FINE, BAD], 1, "CVE-1, fixed in 3"),
        ([FINE, SKIPPED], 3, "NOT AUDITED: 1 of 2"),
        ([BAD, SKIPPED], 1, "NOT AUDITED"),
        ([], 3, "NOT AUDITED"),
    ],
)
def test_nobody_asked_is_not_nothing_known(rows, code, word):
    got, said = judged(rows)
    assert got == code
    assert any(word in line for line in said)
