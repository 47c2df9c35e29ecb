"""One model that exists, attacked and judged: a registered version, an ONNX file, or what a function returns."""

from prefect import flow

from flows.beforehand import check_parts
from flows.champion import champion_of
from flows.config import EvaluateConfig
from flows.whole import whole
from tasks.data import Data
from tasks.decide import decide
from tasks.evaluate import evaluate_robustness, warm_start
from tasks.evidence import Chapter, Story
from tasks.fetch import fetch_model
from tasks.models import StoredModel
from tasks.parts import named
from tasks.publish import publish
from tasks.record import record
from tasks.redact import veiled
from tasks.replay import replay_examples
from tasks.track import model_facts, open_run
from tasks.validate import validate_data


@flow(name="redoubt-evaluate", description="One model that exists: attack it, decide, keep what was found.")
@veiled
def evaluate_model(config: EvaluateConfig, again: bool = False) -> Story:
    """Validate the data, attack the model, decide, and record it on its registered version, if it has one.

    again: measure everything anew, whatever is in the store of cells.
    """
    values = config.model_dump(mode="json")
    check_parts(config)
    with named(values), open_run(config.name, values) as run_id:
        data = validate_data(config.dataset, config.contract, run_id=run_id)
        model, version = fetch_model(config.model, run_id=run_id, shape=data.shape)
        chapter = doubt(model, version, data, config, run_id=run_id, again=again)
        return publish(config.name, run_id, data, config.policy, whole([chapter]))


def doubt(
    model: StoredModel, version: int | None, data: Data, config: EvaluateConfig, *, run_id: str, again: bool = False
) -> Chapter:
    """Attack a stored model on test, replay what fooled earlier versions, decide, and record what was found.

    A version is compared with the champion only if it is newer.
    """
    start = warm_start(config.name, data, config.evaluation)
    report = evaluate_robustness(
        model, data, config.evaluation, split="test", run_id=run_id, start=whole(start), again=again
    )
    held, known = model_facts(config.name)
    found, tags = whole(report), whole(known)
    replays = replay_examples(config.name, tags, model, data, found, run_id=run_id)
    champion = None
    if version is not None and version > held.get("champion", version):
        champion = champion_of(config, data, start, run_id=run_id)
    best = whole(champion)
    verdict = decide(
        model,
        found,
        config.policy,
        champion=best,
        replays=replays,
        name=config.name,
        version=version,
        data=data,
        tags=tags,
    )
    asked = config.model_dump(mode="json")
    evidence = record(
        config.name, version, model, data, found, verdict, asked, replays=replays, champion=best, run_id=run_id
    )
    return Chapter(
        stage=model.stage, run_id=model.run_id, version=version, report=report, verdict=verdict, evidence=evidence
    )
