"""Steps on a GPU take turns, by a concurrency limit of a real Prefect server. No GPU is needed to see it."""

import threading
import time
from contextvars import copy_context

import pytest
import torch
from prefect.client.orchestration import get_client

from tasks.gpu import LIMIT, gpu_slot

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]
CUDA = torch.device("cuda", 0)


def most_at_once(steps: int) -> int:
    """How many of so many steps were inside at the same time, at most."""
    inside, most, lock = [0], [0], threading.Lock()

    def step() -> None:
        with gpu_slot(CUDA):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(2)
            with lock:
                inside[0] -= 1

    # as Prefect's runners start a step: a thread of its own that knows the settings
    threads = [threading.Thread(target=copy_context().run, args=(step,)) for _ in range(steps)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most[0]


def test_steps_on_a_gpu_take_turns_and_a_limit_that_a_team_has_set_is_left_as_it_is(prefect_server):
    with get_client(sync_client=True) as server:
        assert LIMIT not in {limit.name for limit in server.read_global_concurrency_limits()}
        assert most_at_once(3) == 1
        assert server.read_global_concurrency_limit_by_name(LIMIT).limit == 1
        server.upsert_global_concurrency_limit_by_name(LIMIT, 2)
        assert most_at_once(3) == 2
        assert server.read_global_concurrency_limit_by_name(LIMIT).limit == 2
        server.delete_global_concurrency_limit_by_name(LIMIT)
