"""Let one process at a time change what is kept of a registered model: read, add, write back."""

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from tasks.locks import locked

TEMPORARY = "REDOUBT_TEMPORARY_PREFECT"  # set while PREFECT_API_URL names a server that this run alone uses
LEASE = 60.0  # seconds after which the server gives a slot back that nobody renews; whoever lives renews it
LONGEST = 300.0  # seconds that a slot is waited for: a server that was restarted forgets whose it was

log = logging.getLogger("redoubt")


@contextmanager
def reserved(name: str) -> Iterator[None]:
    """Be the only one to change the registered model, on this machine and among all that share a Prefect server.

    Between machines it is Prefect's global concurrency limit `redoubt-record-<model>`, made where it is absent.
    """
    store = os.environ.get("MLFLOW_TRACKING_URI") or "embedded"
    with locked(f"{name} {store}"), _among_machines(name):
        yield


@contextmanager
def _among_machines(name: str) -> Iterator[None]:
    if not os.environ.get("PREFECT_API_URL") or os.environ.get(TEMPORARY):
        yield
        return
    limit = f"redoubt-record-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-') or 'model'}"
    try:
        slot = _entered(limit)
    except TimeoutError:
        log.warning("the slot of %s was not given back within %g s. It is taken for lost.", limit, LONGEST)
        _given_back(limit)
        yield
        return
    try:
        yield
    finally:
        _left(slot, limit)


def _entered(limit: str) -> AbstractContextManager[None]:
    """The slot, waited for; a server that is just being restarted is waited for as well. Raises TimeoutError."""
    from httpx import TransportError
    from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
    from prefect.concurrency.sync import concurrency

    deadline, made = time.monotonic() + LONGEST, False
    while True:
        slot = concurrency(
            limit, lease_duration=LEASE, timeout_seconds=LONGEST, strict=True, raise_on_lease_renewal_failure=False
        )
        try:
            slot.__enter__()
            return slot
        except ConcurrencySlotAcquisitionError:  # a server that does not answer, or does not know the limit yet
            if time.monotonic() > deadline:
                raise
            if made:
                time.sleep(1)
            try:
                _made(limit)
                made = True
            except TransportError:
                time.sleep(1)


def _left(slot: AbstractContextManager[None], limit: str) -> None:
    """Give the slot back; where the server forgot whose it was, say that it is free."""
    try:
        slot.__exit__(None, None, None)
    except Exception as error:  # what was written is written: a server that is away must not undo the verdict
        log.warning("the slot of %s could not be given back (%s). The server does so by itself.", limit, error)


def _made(limit: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError

    with get_client(sync_client=True) as server:
        try:
            server.upsert_global_concurrency_limit_by_name(limit, limit=1)
        except (ObjectAlreadyExists, PrefectHTTPStatusError):  # another process made it at the same moment
            server.read_global_concurrency_limit_by_name(limit)


def _given_back(limit: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

    with get_client(sync_client=True) as server:
        server.update_global_concurrency_limit(limit, GlobalConcurrencyLimitUpdate(active_slots=0))
