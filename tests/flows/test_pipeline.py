"""The whole path on a real Prefect server and a real MLflow store, numbers read back out of MLflow."""

import pytest

from flows.pipeline import posture_pipeline
from flows.recipes import digits, two_kinds
from tasks.evidence import Story
from tasks.track import aliases, client, load_bytes

pytestmark = pytest.mark.server
NAME = "two-kinds"


def children(story: Story) -> dict[str, object]:
    store = client()
    experiment = store.get_experiment_by_name(story.name).experiment_id
    runs = store.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{story.run_id}'")
    return {run.info.run_name: run for run in runs}


@pytest.mark.nightly
def test_digits_fail_before_hardening_and_pass_after_it(prefect_server, home):
    story = posture_pipeline(digits())
    before, after = story.chapters
    assert (before.verdict.outcome, after.verdict.outcome) == ("fail", "pass")
    assert before.report.threats[0].robust.hi < 0.3 < 0.6 <= after.report.threats[0].robust.lo
    assert aliases("digits") == {"challenger": 1, "champion": 2}


def test_hardening_saves_exactly_the_strong_feature_and_mlflow_holds_it_all(prefect_server, home):
    config = two_kinds()
    story = posture_pipeline(config)
    before, after = story.chapters
    assert (before.verdict.outcome, after.verdict.outcome) == ("fail", "pass")
    assert before.report.clean.value > 0.9 > 0.1 > before.report.threats[0].robust.value
    assert after.report.threats[0].robust.value == pytest.approx(0.95, abs=0.03)
    assert after.report.clean.value == pytest.approx(0.95, abs=0.03)
    assert aliases(NAME) == {"challenger": 1, "champion": 2}

    store, runs = client(), children(story)
    assert {name: run.info.status for name, run in runs.items()} == {"baseline": "FINISHED", "hardened-1": "FINISHED"}
    for chapter in story.chapters:
        metrics = runs[chapter.stage].data.metrics
        for key, value in chapter.report.metrics().items():
            assert metrics[key] == pytest.approx(value)
        assert "train/select_loss" in metrics
        version = store.get_model_version(NAME, str(chapter.version))
        assert version.tags["redoubt.verdict"] == chapter.verdict.outcome
        assert version.run_id == runs[chapter.stage].info.run_id
        held = {
            a.path
            for folder in ("", "outcomes", "adversarial", "weights")
            for a in store.list_artifacts(version.run_id, folder)
        }
        assert {"report.json", "model.json", "verdict.json", "weights/model.safetensors"} <= held
        for threat in config.evaluation.threats:
            assert {f"outcomes/{threat.name}.json", f"adversarial/{threat.name}.npz"} <= held
    assert "select/clean_accuracy" in runs["hardened-1"].data.metrics
    parent = {a.path for a in store.list_artifacts(story.run_id)}
    assert {"config.json", "report.html", "story.json", "validation"} <= parent
    assert Story.model_validate_json(load_bytes(f"runs:/{story.run_id}/story.json")) == story
    assert store.get_run(story.run_id).info.status == "FINISHED"
    assert [r.info.run_id for r in store.search_runs(["0"])] == []  # nothing strayed into the default experiment
    logged = store.search_logged_models([store.get_experiment_by_name(NAME).experiment_id])
    assert {m.name for m in logged} == {"model"}
    assert len(logged) == 2

    again = posture_pipeline(config)
    assert again.chapters[1].report.threats[0].standing == after.report.threats[0].standing
    assert aliases(NAME) == {"challenger": 3, "champion": 4, "previous": 2}


@pytest.mark.nightly
def test_without_rounds_a_fail_stays_a_fail(prefect_server, home):
    config = two_kinds()
    story = posture_pipeline(config.model_copy(update={"policy": config.policy.model_copy(update={"max_rounds": 0})}))
    assert story.verdict.outcome == "fail"
    assert aliases(NAME) == {"challenger": 1}
    assert story.champion is None
