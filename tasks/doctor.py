"""Look an installation over: a table of checks, each with what was found and the command that mends it."""

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tasks.errors import StoreUnreachable, WrongInput
from tasks.health import Finding, bounded, failed, fine, machine, scheduler, servers, skipped, trust
from tasks.health.servers import Server
from tasks.home import home
from tasks.track import check_place, embedded_store, names, visitor, write_and_delete

LIMIT = 45.0  # seconds for one check; each answer of a server has 5, making the embedded store's tables takes 20
QUIET = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
MLFLOW_LOGIN = "MLFLOW_TRACKING_USERNAME=<user> MLFLOW_TRACKING_PASSWORD=<password>"
PREFECT_LOGIN = "PREFECT_API_AUTH_STRING=<user>:<password>"
HOME = "export REDOUBT_HOME=<a folder that you may write to>"
POOL = "redoubt"


@dataclass(frozen=True)
class Installation:
    """What the environment names. A server is None where everything is embedded."""

    mlflow: Server | None
    prefect: Server | None
    pool: str = POOL


@dataclass(frozen=True)
class Check:
    """One line of the report; one that needs another is not tried where that one fails."""

    name: str
    look: Callable[[Installation], Finding]
    needs: str = ""


def diagnose(
    installation: Installation, only: Collection[str] = (), *, limit: float = LIMIT
) -> Iterator[tuple[str, Finding]]:
    """The name of each check in the table, or of those that are named, and what it found, as they come.

    Never hangs, and no check that breaks ends the others. Raises WrongInput for a check that is not in the table.
    """
    known = [check.name for check in CHECKS]
    for name in only:
        if name not in known:
            raise WrongInput(f"there is no check {name!r}. Write one of: {', '.join(known)}.")
    stuck: set[str] = set()  # what failed, and what was not tried for that
    for check in CHECKS:
        if only and check.name not in only:
            continue
        if check.needs in stuck:
            found = skipped(f"not tried: {check.needs} comes first")
        else:
            found = bounded(partial(check.look, installation), limit)
        if check.needs in stuck or found.outcome == "fail":
            stuck.add(check.name)
        yield check.name, found


def named(pool: str = POOL) -> Installation:
    """The installation that the environment names: MLFLOW_TRACKING_URI, PREFECT_API_URL."""
    mlflow, prefect = os.environ.get("MLFLOW_TRACKING_URI", ""), os.environ.get("PREFECT_API_URL", "")
    return Installation(
        mlflow=mlflow_at(mlflow) if mlflow.startswith(("http://", "https://")) else None,
        prefect=prefect_at(prefect) if prefect else None,
        pool=pool,
    )


def mlflow_at(url: str) -> Server:
    """MLflow's server at a URL."""
    return Server(
        "MLflow",
        url,
        "MLFLOW_TRACKING_URI",
        MLFLOW_LOGIN,
        probe="/api/2.0/mlflow/experiments/search?max_results=1",
        health="/health",
        well=b"OK",
        version="/version",
        like="http://<host>:5000",
        trust=trust.MLFLOW,
    )


def prefect_at(url: str) -> Server:
    """Prefect's server at the URL of its API."""
    return Server(
        "Prefect",
        url,
        "PREFECT_API_URL",
        PREFECT_LOGIN,
        probe="/admin/version",
        health="/health",
        well=b"true",
        version="/admin/version",
        like="http://<host>:4200/api",
        trust=trust.PREFECT,
    )


def prefect_headers() -> dict[str, str]:
    """The header that says to Prefect who calls, as its own client takes it from the environment."""
    key = os.environ.get("PREFECT_API_KEY", "")
    return {"Authorization": f"Bearer {key}"} if key else servers.basic(os.environ.get("PREFECT_API_AUTH_STRING", ""))


def require_prefect(url: str) -> None:
    """Return if Prefect's server answers and lets us in. Raises StoreUnreachable that says what to set.

    One that is busy has half a minute, one that is not there none.
    """
    server = prefect_at(url)
    try:
        answer = servers.patiently(server, server.probe, headers=prefect_headers())
    except OSError as error:
        why = getattr(error, "reason", None) or error
        mend = server.trust.mend(why) or "Start it, correct PREFECT_API_URL, or unset it to do without"
        raise StoreUnreachable(f"no Prefect server answers at {server.shown} ({why}). {mend}.") from error
    if answer.status in (401, 403):
        raise StoreUnreachable(
            f"Prefect's server at {server.shown} does not let us in ({answer.status}). Set what it was given as "
            f"PREFECT_SERVER_API_AUTH_STRING: export {PREFECT_LOGIN}"
        )
    if answer.status != 200:
        told = f"{server.shown} says {answer.status}"
        raise StoreUnreachable(f"{told}: is it the URL of Prefect's API, with /api at its end?")
    fit = servers.fits(answer, "prefect")
    if fit.outcome == "fail":
        raise StoreUnreachable(f"{fit.found}. {fit.mend}")


def _mlflow(at: Installation) -> Finding:
    if at.mlflow:
        return servers.reachable(at.mlflow)
    store = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        check_place(store or "")
        return fine(f"embedded: {servers.without_password(store or embedded_store())}")
    except WrongInput as error:
        return failed(str(error), f"export MLFLOW_TRACKING_URI={mlflow_at('').like}, or unset it")
    except StoreUnreachable as error:
        return failed(str(error), HOME)


def _mlflow_auth(at: Installation) -> Finding:
    mend = "mlflow server --app-name basic-auth ...   (as in infra/compose.yaml)"
    return servers.asks_who_calls(at.mlflow, mend=mend) if at.mlflow else skipped("the store is embedded")


def _mlflow_store(at: Installation) -> Finding:
    try:
        write_and_delete()
        seen = len(names())
    except StoreUnreachable as error:
        return failed(str(error), _store_mend(str(error), at))
    who = f" for {visitor()}" if visitor() else ""
    models = f"{seen} registered {'model is' if seen == 1 else 'models are'} visible{who}"
    return fine(f"a run's tag and artifact were written, read and deleted; {models}")


def _store_mend(told: str, at: Installation) -> str:
    """By what the failure says: whose word, whose folder, or whose log."""
    if "does not let us in" in told:
        return f"export {MLFLOW_LOGIN}"
    if "REDOUBT_HOME" in told:
        return HOME
    where = "the database and the artifact store of MLflow, and its log" if at.mlflow else "the disk of REDOUBT_HOME"
    return f"see {where}"


def _mlflow_clock(at: Installation) -> Finding:
    return servers.clock(at.mlflow) if at.mlflow else skipped("the store is embedded")


def _mlflow_version(at: Installation) -> Finding:
    if at.mlflow is None:
        return skipped("the store is embedded")
    words = f"{os.environ.get('MLFLOW_TRACKING_USERNAME', '')}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
    headers = servers.basic(words if words != ":" else "")
    return servers.fits(at.mlflow.ask(at.mlflow.version, headers=headers), "mlflow")


def _of_prefect(look: Callable[[Server, Installation], Finding]) -> Callable[[Installation], Finding]:
    """The check, where a server is named."""

    def check(at: Installation) -> Finding:
        return look(at.prefect, at) if at.prefect else skipped("no server is named: each run starts its own")

    return check


def _prefect_auth(server: Server, _: Installation) -> Finding:
    mend = "export PREFECT_SERVER_API_AUTH_STRING=<user>:<password>   (where the server starts)"
    return servers.asks_who_calls(server, mend=mend)


def _prefect_version(server: Server, _: Installation) -> Finding:
    return servers.fits(server.ask(server.version, headers=prefect_headers()), "prefect")


def _prefect_store(server: Server, _: Installation) -> Finding:
    return scheduler.store(server, prefect_headers())


def _work_pool(server: Server, at: Installation) -> Finding:
    return scheduler.work_pool(server, prefect_headers(), at.pool)


def _worker(server: Server, at: Installation) -> Finding:
    return scheduler.worker(server, prefect_headers(), at.pool)


def _gpu_limit(server: Server, _: Installation) -> Finding:
    return scheduler.gpu_limit(server, prefect_headers())


def _folders(_: Installation) -> Finding:
    return machine.writable(
        {"REDOUBT_HOME": home(), "the store of cells": home() / "cells", "temporary files": machine.temporary()}
    )


def _disk(_: Installation) -> Finding:
    return machine.disk((home(), machine.temporary()))


def _secrets(_: Installation) -> Finding:
    key, passwords = os.environ.get("REDOUBT_SIGNING_KEY"), Path("~/.mlflow/credentials").expanduser()
    files = {"the signing key": Path(key).expanduser()} if key else {}
    return machine.secrets(files | ({"MLflow's passwords": passwords} if passwords.exists() else {}))


CHECKS = (
    Check("python", lambda _: machine.python()),
    Check("packages", lambda _: machine.packages()),
    Check("folders", _folders),
    Check("free disk", _disk),
    Check("secrets", _secrets),
    Check("telemetry", lambda _: machine.telemetry(QUIET)),
    Check("data", lambda _: machine.data(os.environ.get("REDOUBT_DATA", ""))),
    Check("mlflow", _mlflow),
    Check("mlflow version", _mlflow_version, needs="mlflow"),
    Check("mlflow auth", _mlflow_auth, needs="mlflow"),
    Check("mlflow store", _mlflow_store, needs="mlflow"),
    Check("mlflow clock", _mlflow_clock, needs="mlflow"),
    Check("prefect", _of_prefect(lambda server, _: servers.reachable(server))),
    Check("prefect version", _of_prefect(_prefect_version), needs="prefect"),
    Check("prefect auth", _of_prefect(_prefect_auth), needs="prefect"),
    Check("prefect store", _of_prefect(_prefect_store), needs="prefect"),
    Check("prefect clock", _of_prefect(lambda server, _: servers.clock(server)), needs="prefect"),
    Check("work pool", _of_prefect(_work_pool), needs="prefect store"),
    Check("worker", _of_prefect(_worker), needs="prefect store"),
    Check("gpu limit", _of_prefect(_gpu_limit), needs="prefect store"),
)
