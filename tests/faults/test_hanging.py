"""An attack that hangs or ends its process: the run ends, names it, and cannot pass."""

import json
from pathlib import Path

import pytest

from tests.faults.harness import NAME, SMALL, assert_verifies, redoubt

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3000)]
SAYS = {
    "sleeps": "was stopped after 2 s",
    "spins": "was stopped after 2 s",
    "asks_for_ever": "was stopped after 2 s",
    "exits": "ended its process (exit code 0)",
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("hanging") / "home"
    assert redoubt(home, *SMALL).returncode == 0
    return home


def of_this_home(home: Path) -> list[str]:
    """The processes of this machine that were given this folder."""
    mine, found = f"REDOUBT_HOME={home}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mine in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("name", SAYS)
def test_the_report_names_it_and_the_verdict_is_no_pass(measured, name):
    ask = ["evaluate", f"models:/{NAME}/2", "--json", "--set", "evaluation.attack_seconds=2"]
    ask += ["--set", f"evaluation.attacks=[{{name: 'tests.faults.parts:{name}'}}]"]
    ran = redoubt(measured, *ask)
    assert ran.returncode == 2, ran.stderr  # the same model passes without it
    said = json.loads(ran.stdout)
    assert said["verdict"] == "cannot tell"
    assert any(f"tests.faults.parts:{name}: {SAYS[name]}" in reason for reason in said["reasons"])
    assert of_this_home(measured) == []
    assert_verifies(measured)
