"""Secrets in tracked files. Exit code 0: none, 1: found; the finding names file and line, never the secret.

A line that only looks like one says so: `# pragma: allowlist secret`.
"""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from detect_secrets import SecretsCollection
from detect_secrets.settings import transient_settings

ROOT = Path(__file__).parents[1]
PLUGINS = (
    *("AWSKeyDetector", "AzureStorageKeyDetector", "BasicAuthDetector", "GitHubTokenDetector", "GitLabTokenDetector"),
    *("JwtTokenDetector", "KeywordDetector", "NpmDetector", "OpenAIDetector", "PrivateKeyDetector"),
    *("PypiTokenDetector", "SlackDetector", "StripeDetector", "TwilioKeyDetector"),
)
# Without the entropy detectors: digests are what this repository is made of.
SETTINGS = {
    "plugins_used": [{"name": name} for name in PLUGINS],
    "filters_used": [
        {"path": "detect_secrets.filters.allowlist.is_line_allowlisted"},
        {"path": "detect_secrets.filters.heuristic.is_indirect_reference"},
        {"path": "detect_secrets.filters.heuristic.is_templated_secret"},
    ],
}


def found_in(paths: Iterable[Path]) -> list[str]:
    """A line for each secret: file, line, what kind."""
    secrets = SecretsCollection()
    with transient_settings(SETTINGS):
        for path in paths:
            secrets.scan_file(str(path))
    return sorted(f"{name}:{secret.line_number}: {secret.type}" for name, secret in secrets)


def tracked() -> list[Path]:
    """Every file that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


if __name__ == "__main__":
    secrets = found_in(tracked())
    print("\n".join(secrets) or "none")
    sys.exit(1 if secrets else 0)
