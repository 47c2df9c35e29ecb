"""What may be said of workers, and what a GPU's slot asks of nobody else."""

import socket

import pytest
import torch

from tasks.errors import WrongInput
from tasks.gpu import gpu_slot
from tasks.workers import alone, check_workers, workers


@pytest.mark.parametrize("words", ["2", "16", "threads:2", "dask", "dask:4", "ray", "ray:2"])
def test_words_that_name_workers_are_taken(words):
    check_workers(words)


@pytest.mark.parametrize("words", ["0", "-1", "many", "dask:0", "dask=", "threads", "threads=a", "ray:x", "4 dask", ""])
def test_words_that_name_none_are_refused_with_those_that_do(words):
    with pytest.raises(WrongInput, match=r"write a number of processes \(4\)"):
        check_workers(words)


@pytest.mark.parametrize("kind", ["dask=tcp://", "dask=", "ray=ray://", "ray="])
def test_a_cluster_must_answer_at_its_address(kind):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        where = f"{kind}127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(WrongInput, match=r"cluster answers at .*Start it, or correct REDOUBT_WORKERS"):
            check_workers(where)
        listening.listen()
        check_workers(where)


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr("tasks.workers.find_spec", lambda name: None)
    with pytest.raises(WrongInput, match=r"Install redoubt\[dask\]"):
        check_workers("dask")


@pytest.mark.parametrize(("said", "meant"), [("", ""), ("1", ""), (" 4 ", "4"), ("dask", "dask")])
def test_one_process_is_no_worker_and_a_worker_has_none(monkeypatch, said, meant):
    monkeypatch.setenv("REDOUBT_WORKERS", said)
    assert workers() == meant
    with alone():
        assert workers() == ""
    assert workers() == meant


def test_a_step_on_the_cpu_asks_no_server_for_a_slot(monkeypatch):
    monkeypatch.setattr("tasks.gpu._make_limit", lambda: pytest.fail("it asked"))
    with gpu_slot(torch.device("cpu")):
        pass
