"""How many steps compute on a GPU at the same time: as many as Prefect's concurrency limit `gpu` has slots."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

LIMIT = "gpu"


@contextmanager
def gpu_slot(device: "torch.device") -> Iterator[None]:
    """Wait for a slot of the limit where the device is CUDA, and hold it meanwhile; on others nothing.

    A limit that is absent is made, with one slot: Prefect takes an absent one for no limit. More: `prefect gcl update
    gpu --limit 2`. The slot of a process that dies is free again after five minutes.
    """
    if device.type != "cuda":
        yield
        return
    from prefect.concurrency.sync import concurrency

    _make_limit()
    with concurrency(LIMIT, occupy=1, strict=True, raise_on_lease_renewal_failure=False):
        yield


def device_under(network: "nn.Module") -> "torch.device":
    """Where the network computes."""
    import torch

    return next((p.device for p in network.parameters()), torch.device("cpu"))


def _make_limit() -> None:
    """Make the limit with one slot, unless there is one."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with get_client(sync_client=True) as server:
        try:
            server.read_global_concurrency_limit_by_name(LIMIT)
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):  # by another that starts at the same time
                server.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=1))
