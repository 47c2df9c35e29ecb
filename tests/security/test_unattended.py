"""Nobody sits beside a run of a schedule: what it kept of an error holds no secret, wherever it kept it."""

import asyncio
import logging
from pathlib import Path

import pytest
import torch
from prefect.client.orchestration import get_client

from flows.config import EvaluateConfig
from flows.evaluate import evaluate_model
from flows.reattack import broken
from tasks.errors import ModelRejected
from tasks.redact import told, veil_logs, veiled

CANARIES = {
    "MLFLOW_TRACKING_PASSWORD": "canary-of-mlflow",  # pragma: allowlist secret
    "AWS_SECRET_ACCESS_KEY": "canary/of+aws",  # pragma: allowlist secret
    "REDOUBT_WEBHOOK_URL": "https://hooks.example/T0/canary-of-hook",
}
URL = "http://user:" + "canary-in-url@127.0.0.1:1"
HERE = "tests.security.test_unattended"
TELLS = f"{' '.join(CANARIES.values())} at {URL}/api"


class Elsewhere(Exception):
    """An error whose text is not in its arguments."""

    def __str__(self) -> str:
        return f"no answer: {TELLS}"


@pytest.fixture
def canaries(monkeypatch):
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


def leaking_attack(model, x, y, *, threat, rng):
    """An attack of a user's own that fails as a client of some server does."""
    raise Elsewhere


def leaking_model() -> torch.nn.Module:
    """A model that cannot be fetched."""
    raise RuntimeError(f"no weights: {TELLS}")


def plain_model() -> torch.nn.Module:
    """One that can."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(201, 2))


def config(model: str, attack: str) -> EvaluateConfig:
    return EvaluateConfig(
        name="unattended",
        model=f"{HERE}:{model}",
        dataset="two-kinds",
        evaluation={
            "threats": [{"norm": "linf", "eps": 0.1}],
            "samples": 50,
            "suite": "quick",
            "attacks": [{"name": attack}],
        },
    )


async def kept_by_prefect() -> str:
    """All that the server holds of runs: the texts of their states, and their logs."""
    async with get_client() as client:
        runs = [*await client.read_flow_runs(), *await client.read_task_runs()]
        return "\n".join([*(str(run.state) for run in runs), *(line.message for line in await client.read_logs())])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.server
def test_what_a_broken_run_leaves_behind_tells_no_secret(prefect_server, home, canaries):
    with pytest.raises(ModelRejected) as refused:
        evaluate_model(config("leaking_model", "fgsm"))
    assert "canary" not in str(refused.value)
    story = evaluate_model(config("plain_model", f"{HERE}:leaking_attack"))
    assert story.verdict.outcome != "pass"
    kept = files(home)
    assert any(b"no answer: ***" in raw for raw in kept.values())  # the search would find what is there
    assert [place for place, raw in kept.items() if b"canary" in raw] == []
    said = asyncio.run(kept_by_prefect())
    assert "no weights: ***" in said
    assert "canary" not in said


def test_an_error_whose_text_comes_from_elsewhere_keeps_its_kind_in_words(canaries):
    @veiled
    def leaks() -> None:
        raise Elsewhere

    with pytest.raises(RuntimeError, match=r"^Elsewhere: no answer: \*\*\*") as caught:
        leaks()
    assert "canary" not in str(caught.value)


def test_what_is_told_of_a_version_that_broke_tells_none(canaries, caplog):
    veil_logs()
    result = broken("fraud", 3, Elsewhere())
    assert result.says.startswith("version 3: not measured: Elsewhere: no answer: ***")
    assert "canary" not in result.says + caplog.text + told(Elsewhere())
    assert "Traceback" not in caplog.text or "***" in caplog.text


def test_a_line_of_any_log_tells_none_with_or_without_a_traceback(canaries, caplog):
    veil_logs()
    veil_logs()  # twice is once
    for _ in range(2):
        try:
            raise Elsewhere
        except Elsewhere:
            logging.getLogger("mlflow.store").exception("refused by %s", URL)
    logging.getLogger("somebody.elses").error("100 %s of %d", "%", 3)
    assert "canary" not in caplog.text
    assert caplog.text.count("Elsewhere: no answer: ***") == 2
    assert "100 % of 3" in caplog.text
