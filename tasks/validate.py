"""The only door to Great Expectations: data is refused before anything is trained on it."""

import hashlib
import json
import logging
import os
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.attacks.code import code_digest
from tasks.data import SPLITS, Data, DataContract, describe, load, summarise
from tasks.data.load import Pair, Split
from tasks.errors import DataRejected
from tasks.evidence import render_validation
from tasks.home import folder
from tasks.redact import veiled
from tasks.track import as_json, environment, log_dataset, log_files, timed

FIRST = 5  # rows that an error names


@dataclass(frozen=True)
class Promise:
    """One expectation in words: what it promises, and what to write where the data is right and it is not."""

    expectation: Any
    promise: str
    remedy: str


@task(name="validate", cache_policy=NO_CACHE)
@veiled
def validate_data(dataset: str, contract: DataContract, *, run_id: str) -> Data:
    """The dataset, with the digest of what was looked at. Logs the result page; raises DataRejected."""
    with timed(run_id, "validate"):
        splits = load(dataset)
        data = describe(dataset, splits)
        result = checked(splits, contract, data)
        log_dataset(run_id, data)
        page = render_validation(result).encode()
        log_files(run_id, {"validation/validation.json": as_json(result), "validation/validation.html": page})
        if not result["success"]:
            raise DataRejected(_sentence(dataset, result))
        return data


def checked(splits: dict[Split, Pair], contract: DataContract, data: Data) -> dict[str, Any]:
    """What check() says. A pass is kept on this machine under all that it follows from, and not looked for again.

    That is every byte of the data, the contract, the code that checks it, and the version of Great Expectations.
    """
    follows = {
        "data": data.model_dump(mode="json"),
        "contract": contract.model_dump(mode="json"),
        "code": code_digest(Path(__file__).parent, ("data", "validate.py")),
        "great_expectations": environment()["great-expectations"],
    }
    key = hashlib.sha256(json.dumps(follows, sort_keys=True).encode()).hexdigest()
    place = folder("validations") / f"{key[:32]}.json"
    with suppress(OSError, ValueError):
        kept: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        if kept["follows"] == follows and kept["result"]["success"] is True:
            return dict(kept["result"])
    result = check(summarise(splits), contract, data)
    if result["success"]:
        fresh = place.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps({"follows": follows, "result": result}), encoding="utf-8")
        fresh.replace(place)
    return result


def check(table: pd.DataFrame, contract: DataContract, data: Data) -> dict[str, Any]:
    """What Great Expectations says of the table of summarise(), as plain values.

    Keys: dataset, digest, samples, success, and checks: a list of promise, remedy, success, looked_at, broken, and
    first, the first rows that break it with the value found.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports modules that Python has deprecated
        import great_expectations as gx

    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)  # names its temp folder
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]  # as its documentation says
    source = context.data_sources.add_pandas("memory")
    definition = source.add_dataframe_asset("summary").add_batch_definition_whole_dataframe("whole")
    promises = _promises(contract, data)
    suite = gx.ExpectationSuite(name="contract", expectations=[promise.expectation for promise in promises])
    wanted = {"result_format": "COMPLETE", "unexpected_index_column_names": ["sample"]}
    found = definition.get_batch({"dataframe": table}).validate(suite, result_format=wanted)
    by_text: dict[Any, Any] = {getattr(row.expectation_config, "description", ""): row for row in found.results}
    checks = [_row(promise, by_text[promise.promise], len(table)) for promise in promises]
    return {
        "dataset": data.name,
        "digest": data.digest,
        "samples": len(table),
        "success": bool(found.success) and all(row["success"] for row in checks),
        "checks": sorted(checks, key=lambda row: (row["success"], -row["broken"])),
    }


def _promises(contract: DataContract, data: Data) -> list[Promise]:
    from great_expectations.expectations.core import (
        ExpectColumnDistinctValuesToContainSet,
        ExpectColumnValuesToBeBetween,
        ExpectColumnValuesToBeInSet,
    )
    from great_expectations.expectations.row_conditions import Column

    classes = list(range(contract.classes or data.classes))
    low, high = contract.bounds
    shape = "x".join(map(str, contract.shape or data.shape))

    def one_of(column: str, values: list[Any], text: str, remedy: str, **more: Any) -> Promise:
        e = ExpectColumnValuesToBeInSet(column=column, value_set=values, description=text, **more)
        return Promise(e, text, remedy)

    def between(column: str, least: float, most: float, text: str, remedy: str, **more: Any) -> Promise:
        e = ExpectColumnValuesToBeBetween(column=column, min_value=least, max_value=most, description=text, **more)
        return Promise(e, text, remedy)

    scale = "Scale the inputs, or set contract.bounds."
    promises = [
        one_of("shape", [shape], f"every sample has shape {shape}", "Reshape x, or set contract.shape."),
        one_of("dtype", ["float32"], "every sample is float32", "Return x as float32."),
        one_of("not_finite", [0], "no sample holds NaN or infinite values", "Fill or drop these samples."),
        between("minimum", low, high, f"the least value of every sample is within {low:g}..{high:g}", scale),
        between("maximum", low, high, f"the largest value of every sample is within {low:g}..{high:g}", scale),
        one_of("label", classes, f"every label is one of 0..{classes[-1]}", "Correct y, or set contract.classes."),
    ]
    for split in SPLITS:
        only: dict[str, Any] = {"row_condition": Column("split") == split}
        there = f"every class occurs in {split}"
        e = ExpectColumnDistinctValuesToContainSet(column="label", value_set=classes, description=there, **only)
        promises.append(Promise(e, there, f"Add samples of the missing classes to {split}, or set contract.classes."))
        share, copies, leaked = contract.min_class_share, contract.max_duplicate_share, contract.max_leaked_share
        text = f"every class makes up at least {share:.1%} of {split}"
        promises.append(
            between("class_share", share, 1, text, "Balance it, or lower contract.min_class_share.", **only)
        )
        text = f"at most {copies:.1%} of {split} occur in it before"
        remedy = "Drop the copies, or raise contract.max_duplicate_share."
        promises.append(one_of("copies_before", [0], text, remedy, mostly=1 - copies, **only))
        if split != "train":
            text = f"at most {leaked:.1%} of {split} are in train too"
            remedy = "Take them out of one of the two, or raise contract.max_leaked_share."
            promises.append(one_of("in_train", [False], text, remedy, mostly=1 - leaked, **only))
    return promises


def _row(promise: Promise, found: Any, n: int) -> dict[str, Any]:
    """One check as plain values; an expectation that could not be computed counts as broken."""
    result, crashed = found.result or {}, (found.exception_info or {}).get("raised_exception", False)
    wanted = found.expectation_config.kwargs
    index = result.get("unexpected_index_list") or []
    first = [f"{row['sample']} ({wanted['column']} {_plain(row[wanted['column']])})" for row in index[:FIRST]]
    broken = int(result.get("unexpected_count") or 0)
    missing = result.get("partial_missing_list") or []  # of classes; all other promises are properties of rows
    if missing:
        first, broken = [f"class {label}" for label in sorted(missing)[:FIRST]], int(result["missing_count"])
    return {
        "promise": promise.promise,
        "remedy": promise.remedy,
        "success": bool(found.success) and not crashed,
        "looked_at": len(wanted["value_set"]) if missing else int(result.get("element_count") or n),
        "broken": broken,
        "first": first,
    }


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return f"{value:.4g}" if isinstance(value, float) else value


def _sentence(dataset: str, result: dict[str, Any]) -> str:
    broken = [row for row in result["checks"] if not row["success"]]
    lines = [f"dataset {dataset!r} breaks its contract in {len(broken)} of {len(result['checks'])} expectations:"]
    for row in broken:
        first = f", first {'; '.join(row['first'])}" if row["first"] else ""
        lines.append(f"  {row['promise']}: broken by {row['broken']} of {row['looked_at']}{first}. {row['remedy']}")
    return "\n".join(lines)
