"""THE MAIN PATH: validate, train, attack, decide, harden, attack again, decide, promote, publish."""

from collections.abc import Mapping

from prefect import flow

from flows.beforehand import check_fit, check_parts
from flows.champion import champion_of
from flows.config import PipelineConfig
from flows.plans import note, remember
from flows.whole import whole
from tasks.candidates import candidates, stages_of
from tasks.data import Data
from tasks.decide import decide, warn_of_few_samples
from tasks.evaluate import evaluate_robustness, warm_start
from tasks.evidence import Chapter, Story
from tasks.metrics import Corpus
from tasks.models import StoredModel
from tasks.parts import named
from tasks.promote import enter, promote
from tasks.publish import publish
from tasks.record import record
from tasks.redact import veiled
from tasks.replay import replay_examples
from tasks.track import model_facts, open_run
from tasks.train import release, train_model
from tasks.validate import validate_data
from tasks.verdicts import Champion


@flow(name="redoubt", description="Data to promoted model: nothing is promoted without a verdict.")
@veiled
def posture_pipeline(config: PipelineConfig) -> Story:
    """Validate, train, attack, decide; on fail harden and attack again; promote what passes. The whole story."""
    values = config.model_dump(mode="json")
    check_parts(config)
    with named(values), open_run(config.name, values) as run_id:
        data = validate_data(config.dataset, config.contract, run_id=run_id)
        check_fit(config, data)
        start = warm_start(config.name, data, config.evaluation)
        champion = champion_of(config, data, start, run_id=run_id)
        warn_of_few_samples(data, config.evaluation, config.policy, champion=champion is not None)

        baseline = train_model(data, config.training, stage="baseline", run_id=run_id)
        chapters, rounds = [examine(baseline, data, config, champion, start, run_id=run_id)], list[Chapter]()
        remember(config)
        if chapters[0].verdict.outcome == "fail" and config.policy.max_rounds > 0:
            hardened, rounds = harden(data, config, run_id=run_id)
            chapters.append(examine(hardened, data, config, champion, start, run_id=run_id))
            note(config, data, run_id, chapters[-1].verdict.outcome)

        remember(config, chapters[-1].verdict.outcome)
        story = publish(config.name, run_id, data, config.policy, whole(chapters), whole(rounds))
        release(data, {"baseline": config.training} | stages_of(config.hardening, config.policy))
        return story


def examine(
    model: StoredModel,
    data: Data,
    config: PipelineConfig,
    champion: Champion | None,
    start: Mapping[str, Corpus],
    *,
    run_id: str,
) -> Chapter:
    """Attack a model on test, once; decide; register it, record what was found, and promote it if it passes."""
    report = evaluate_robustness(model, data, config.evaluation, split="test", run_id=run_id, start=whole(start))
    found, best = whole(report), whole(champion)
    tags = whole(model_facts(config.name)[1])
    replays = replay_examples(config.name, tags, model, data, found, run_id=run_id)
    verdict = decide(model, found, config.policy, champion=best, replays=replays, name=config.name, data=data)
    version = enter(config.name, model, found, verdict)
    asked, passed = config.as_evaluation(version).model_dump(mode="json"), verdict.outcome == "pass"
    evidence = record(
        config.name,
        version,
        model,
        data,
        found,
        verdict,
        asked,
        replays=replays,
        champion=best,
        crowning=passed,
        run_id=run_id,
    )
    promote(config.name, version, model, found, verdict, against=champion.version if champion else None)
    return Chapter(
        stage=model.stage, run_id=model.run_id, version=version, report=report, verdict=verdict, evidence=evidence
    )


def harden(data: Data, config: PipelineConfig, *, run_id: str) -> tuple[StoredModel, list[Chapter]]:
    """The best of at most max_rounds hardened models, and every round. Judged and chosen on select, never on test."""
    tried: list[tuple[StoredModel, Chapter]] = []
    with candidates(data, config.hardening, config.evaluation, config.policy, run_id=run_id) as rounds:
        for model, chapter in rounds:
            tried.append((model, chapter))
            if chapter.verdict.outcome != "fail":
                break
    best, _ = max(tried, key=lambda pair: (pair[1].report.sound, pair[1].report.worst))
    return best, [chapter for _, chapter in tried]
