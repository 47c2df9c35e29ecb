"""What a server of Prefect must know before work arrives by itself, asked over its HTTP interface."""

from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import uuid4

from tasks.health.finding import Finding, failed, fine, warned
from tasks.health.servers import Answer, Server

LOOK = "look at the server's log"
ALIVE = 90.0  # seconds since a worker's last sign of life; it gives one every 30


def store(server: Server, headers: Mapping[str, str]) -> Finding:
    """Whether it keeps something, gives it back and lets it go."""
    name = f"redoubt_doctor_{uuid4().hex}"
    made = server.ask("/variables/", headers=headers, send={"name": name, "value": name})
    if made.status != 201:
        return _refused(server, made)
    read = server.ask(f"/variables/name/{name}", headers=headers)
    gone = server.ask(f"/variables/name/{name}", headers=headers, method="DELETE")
    if read.status != 200 or read.json()["value"] != name or gone.status != 204:
        return failed(f"a variable was written; read said {read.status}, delete {gone.status}", LOOK)
    return fine("a variable was written, read and deleted")


def work_pool(server: Server, headers: Mapping[str, str], pool: str) -> Finding:
    """Whether the work pool is there and takes work."""
    answer = server.ask(f"/work_pools/{pool}", headers=headers)
    if answer.status == 404:
        return warned(f"there is no work pool {pool!r}: nothing runs by itself", "redoubt deploy")
    if answer.status != 200:
        return _refused(server, answer)
    if answer.json()["is_paused"]:
        return warned(f"{pool!r} is paused: nothing runs by itself", f"prefect work-pool resume {pool}")
    return fine(f"{pool!r} of type {answer.json()['type']}")


def worker(server: Server, headers: Mapping[str, str], pool: str) -> Finding:
    """Whether a worker of the pool gave a sign of life lately."""
    answer = server.ask(f"/work_pools/{pool}/workers/filter", headers=headers, send={"limit": 100})
    if answer.status == 404:
        return warned(f"no work pool {pool!r}, so no worker", "redoubt deploy")
    if answer.status != 200:
        return _refused(server, answer)
    beats = {row["name"]: row["last_heartbeat_time"] for row in answer.json()}
    mend = f"redoubt worker --pool {pool}"
    if not any(beats.values()):
        return failed(f"no worker looks after {pool!r}: scheduled runs wait", mend)
    ages = {name: (_now() - datetime.fromisoformat(beat)).total_seconds() for name, beat in beats.items() if beat}
    name = min(ages, key=lambda name: ages[name])
    if ages[name] > ALIVE:
        return failed(f"the last sign of life of {name!r}, the newest worker, is {ages[name]:.0f} s old", mend)
    return fine(f"{sum(age <= ALIVE for age in ages.values())} alive")


def gpu_limit(server: Server, headers: Mapping[str, str]) -> Finding:
    """Whether the limit that keeps two runs from sharing a GPU is there."""
    answer = server.ask("/v2/concurrency_limits/gpu", headers=headers)
    if answer.status == 404:
        return warned("there is no limit 'gpu': two runs may take one GPU", "prefect gcl create gpu --limit 1")
    if answer.status != 200:
        return _refused(server, answer)
    if not answer.json()["active"]:
        return warned("the limit 'gpu' is switched off", "prefect gcl update gpu --enable")
    return fine(f"{answer.json()['limit']} at a time")


def _now() -> datetime:
    return datetime.now(UTC)


def _refused(server: Server, answer: Answer) -> Finding:
    if answer.status in (401, 403):
        return failed(f"it refuses us ({answer.status})", f"export {server.credentials}   (what the server was given)")
    return failed(f"it says {answer.status}", LOOK)
