"""The checks that infra/audit makes: secrets in tracked files, and who was asked about vulnerabilities."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.webhook import listening

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "infra"))
from leaks import found_in, tracked  # noqa: E402
from vulnerable import PINNED, asked, judged  # noqa: E402


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


@pytest.fixture
def advisories(monkeypatch) -> Iterator[tuple[dict[str, str], list[dict[str, Any]]]]:
    """Which packages a vulnerability service on this machine knows a flaw of, and what it was asked."""
    flawed: dict[str, str] = {}

    def reply(query: dict[str, Any]) -> dict[str, Any]:
        name = query["package"]["name"]
        if name not in flawed:
            return {}
        ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": flawed[name]}]}]
        affected = [{"package": query["package"], "ranges": ranges, "versions": [query["version"]]}]
        return {"vulns": [{"id": "PYSEC-1", "modified": "2026-01-01T00:00:00Z", "affected": affected}]}

    with listening(reply) as (url, heard):
        monkeypatch.setenv("PIP_AUDIT_OSV_URL", url)
        yield flawed, heard


def test_pip_audit_asks_for_every_pinned_package_and_its_word_decides(advisories):
    flawed, heard = advisories
    flawed["jinja2"] = "99.1"
    pinned = [line for line in PINNED.read_text().splitlines() if "==" in line.partition("#")[0]]
    rows = asked("osv")
    assert rows is not None
    assert {query["package"]["name"] for query in heard} == {row["name"] for row in rows}
    assert len(rows) > 0.9 * len(pinned)  # a marker may leave out what this Python does not need

    code, (said,) = judged(rows)
    assert code == 1
    assert said.startswith("jinja2 3.")
    assert said.endswith(": PYSEC-1, fixed in 99.1")
    assert judged([row for row in rows if row["name"] != "jinja2"])[0] == 0


def test_a_service_that_does_not_answer_is_no_word(monkeypatch, capsys):
    monkeypatch.setenv("PIP_AUDIT_OSV_URL", "http://127.0.0.1:9")
    assert asked("osv") is None
    assert "osv does not answer" in capsys.readouterr().out
