"""Known vulnerabilities of infra/constraints.txt, as pip-audit finds them.

Exit code 0: every package was asked for and has none; 1: some have; 3: nobody could be asked, which is no word on the
set. pip-audit itself ends with 0 where its service knows no package at all.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINNED = Path(__file__).with_name("constraints.txt")
SERVICES = ("pypi", "osv")


def judged(found: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """The exit code and what to say of pip-audit's rows, one for each package."""
    bad = [f"{row['name']} {row['version']}: {v['id']}, fixed in {', '.join(v['fix_versions']) or 'no version'}"
           for row in found for v in row.get("vulns", [])]  # fmt: skip
    skipped = [row["name"] for row in found if "skip_reason" in row]
    if skipped or not found:
        bad.append(f"NOT AUDITED: {len(skipped)} of {len(found)} packages ({', '.join(skipped[:5])}, ...)")
    vulnerable = any(row.get("vulns") for row in found)
    return 1 if vulnerable else 3 if bad else 0, bad or [f"none known in {len(found)} packages"]


def asked(service: str) -> list[dict[str, Any]] | None:
    """A row for each pinned package; None where the service does not answer."""
    words = ["--requirement", str(PINNED), "--no-deps", "--disable-pip", "--vulnerability-service", service]
    more = ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    ran = subprocess.run(
        [sys.executable, "-m", "pip_audit", *words, *more], capture_output=True, text=True, check=False
    )
    try:
        rows: list[dict[str, Any]] = json.loads(ran.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"{service} does not answer: {(ran.stderr.strip().splitlines() or ['no word'])[-1][:200]}")
        return None
    return rows


def main() -> int:
    """The best answer of the services: the first that knows every package, or a vulnerability."""
    for service in SERVICES:
        rows = asked(service)
        code, said = judged(rows) if rows is not None else (3, [])
        print("\n".join(f"{service}: {line}" for line in said))
        if code != 3:
            return code
    print("NOT AUDITED: no service knows the pinned set. That is no word on it. Without a network: REDOUBT_OFFLINE=1.")
    return 3


if __name__ == "__main__":
    sys.exit(main())
