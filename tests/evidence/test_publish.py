"""Which samples are taken out of a real MLflow store for the page."""

import pytest

from flows.recipes import two_kinds
from tasks.data import describe, load
from tasks.errors import EvidenceBroken
from tasks.evaluate import evaluate_robustness
from tasks.evidence import Chapter, Story, render_page
from tasks.metrics import Share, Sign, Soundness, choose_rows
from tasks.publish import ALARMED, shown
from tasks.track import open_run
from tasks.train import train_model
from tasks.verdicts import Policy, judge

N = 150


@pytest.fixture
def story(home) -> Story:
    """A model of a few epochs, measured on 150 of 1,000 rows; an alarm of 20 that fell or stood."""
    config, policy = two_kinds(), Policy(floor=0.0, clean_floor=0.0)
    data = describe("two-kinds", load("two-kinds"))
    quick = config.evaluation.model_copy(update={"suite": "quick", "samples": N, "seed": 3})
    with open_run("steps", {}) as run_id:
        training = config.training.model_copy(update={"epochs": 5})
        model = train_model.fn(data, training, stage="baseline", run_id=run_id)
        report = evaluate_robustness.fn(model, data, quick, split="test", run_id=run_id)
    held = report.threats[0].held()
    places = tuple(int(place) for group in (~held, held) for place in group.nonzero()[0][:10])
    sign = Sign(name="s", kind="masking", state="alarm", first="alarm", samples=places, says="Seen.")
    soundness = Soundness(signs=(sign,), passes=1, share=0.1)
    report = report.model_copy(
        update={"threats": tuple(t.model_copy(update={"soundness": soundness}) for t in report.threats)}
    )
    chapter = Chapter(stage="baseline", run_id=model.run_id, report=report, verdict=judge(report, policy))
    return Story(name="two-kinds", run_id=run_id, data=data, policy=policy, chapters=(chapter,))


def test_an_alarm_s_place_leads_to_its_own_row_of_the_split(story):
    x, y = load("two-kinds")["test"]
    rows = choose_rows(len(y), N, 3)
    pictures, (samples,) = shown(story)
    assert pictures
    assert list(samples.rows) == rows.tolist() != list(range(N))
    assert tuple(samples.pictures) == story.chapters[0].report.threats[0].soundness.alarms[0].samples[:ALARMED]
    held = story.chapters[0].report.threats[0].held()
    for place, picture in samples.pictures.items():
        assert picture.x.equal(x[rows[place]])
        assert picture.y == y[rows[place]]
        assert (picture.prediction == picture.y) == held[place]
        if picture.x_adv is not None:
            assert 0 < (picture.x_adv - picture.x).abs().max() <= story.chapters[0].report.threats[0].threat.eps + 1e-5
    assert len({picture.x_adv is None for picture in samples.pictures.values()}) == 2
    assert f"Row {rows[min(samples.pictures)]} of test" in render_page(story, pictures, [samples])


def test_a_report_of_another_number_of_samples_is_refused(story):
    (chapter,) = story.chapters
    other = chapter.report.threats[0].model_copy(update={"robust": Share.of(1, N - 1)})
    report = chapter.report.model_copy(update={"threats": (other,)})
    with pytest.raises(EvidenceBroken, match="hold 150 samples, its report 149"):
        shown(story.model_copy(update={"chapters": (chapter.model_copy(update={"report": report}),)}))
