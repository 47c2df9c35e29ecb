"""Pickles: none is loaded without a consent that names its digest, and then once, elsewhere, for its graph alone."""

import hashlib
import io
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from tasks.errors import ModelRejected, WrongInput
from tasks.fetch import fetch_file, load_model, network_of
from tasks.models import consented, consents, from_exported, graph_of, pickle_in
from tasks.track import artifacts, client, load_stored, run_tags

CANARIES = ("MLFLOW_TRACKING_PASSWORD", "PREFECT_API_AUTH_STRING", "AWS_SECRET_ACCESS_KEY", "REDOUBT_SIGNING_PASSWORD")


class Tells:
    """Writes the environment that it is loaded in to a file; what is loaded is the net."""

    def __init__(self, marker: Path, net: object) -> None:
        self.marker, self.net = marker, net

    def __reduce__(self):
        code = f"__import__('json').dump(dict(__import__('os').environ), open({str(self.marker)!r}, 'w')) or net"
        return eval, (code, {"net": self.net})


def saved(thing: object) -> bytes:
    raw = io.BytesIO()
    torch.save(thing, raw)
    return raw.getvalue()


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.fixture
def pickled(tmp_path, monkeypatch, net):
    """A malicious pickle of a network as a file, its digest, and the file that says that it was loaded."""
    monkeypatch.delenv("REDOUBT_CONSENT", raising=False)
    for name in CANARIES:
        monkeypatch.setenv(name, "canary")
    marker = tmp_path / "loaded"
    file = tmp_path / "net.pth"
    file.write_bytes(saved(Tells(marker, net)))
    return file, f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}", marker


def test_without_consent_it_is_refused_with_its_digest_and_nothing_runs(pickled):
    file, digest, marker = pickled
    with pytest.raises(ModelRejected, match=f"--consent {digest}"):
        load_model(str(file), (1, 8, 8))
    assert not marker.exists()


def test_a_consent_to_another_file_or_to_what_the_file_was_is_none(pickled, monkeypatch):
    file, digest, marker = pickled
    monkeypatch.setenv("REDOUBT_CONSENT", f"sha256:{'0' * 64}")
    with pytest.raises(ModelRejected, match="is a pickle"):
        load_model(str(file), (1, 8, 8))
    monkeypatch.setenv("REDOUBT_CONSENT", digest)
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ModelRejected, match="is a pickle"):
        load_model(str(file), (1, 8, 8))
    assert not marker.exists()


@pytest.mark.parametrize(
    "word", ["*", "all", "yes", "1", "true", "sha256:", "sha256:*", "sha256:abc", "md5:" + "0" * 32]
)
def test_there_is_no_consent_to_everything(word, monkeypatch):
    with pytest.raises(WrongInput, match="no consent to everything"):
        consents([word])
    monkeypatch.setenv("REDOUBT_CONSENT", word)
    with pytest.raises(WrongInput, match="no consent to everything"):
        consented(b"", "x", "")


def test_several_consents_stand_with_commas(monkeypatch):
    a, b, c = (f"sha256:{letter * 64}" for letter in "abc")
    monkeypatch.setenv("REDOUBT_CONSENT", f"{a}, {b},")
    assert consents([c]) == {a, b, c}


def test_with_consent_it_is_loaded_without_credentials_and_only_its_graph_is_kept(pickled, monkeypatch, home, net):
    file, digest, marker = pickled
    monkeypatch.setenv("REDOUBT_CONSENT", digest)
    run = client().create_run(client().create_experiment("theirs")).info.run_id
    stored = fetch_file(file, run_id=run, shape=(1, 8, 8))
    seen = json.loads(marker.read_text())
    assert not {name for name in seen if name in CANARIES or "REDOUBT" in name or "canary" in seen[name]}
    assert seen["HOME"] != os.environ.get("HOME")
    marker.unlink()
    x = torch.rand(5, 1, 8, 8)
    assert torch.allclose(network_of(load_stored(run))(x), net(x), atol=1e-6)
    assert stored.kind == "graph"
    assert set(artifacts(run)) == {"model.json", "weights/model.pt2"}  # the pickle itself is not kept
    tags = run_tags(run)
    assert tags["redoubt.consent"] == digest
    assert tags["redoubt.consent.by"]
    assert tags["redoubt.consent.at"].endswith("+00:00")
    assert not marker.exists()  # from here on only the graph is used


class Exits:
    def __reduce__(self):
        return os._exit, (0,)


@pytest.mark.parametrize(
    ("thing", "why"),
    [
        ({"0.weight": torch.zeros(2, 2)}, "it holds a dict, not a network"),
        pytest.param(Exits(), "no graph comes of it", marks=pytest.mark.nightly),
    ],
)
def test_what_gives_no_graph_is_refused_with_the_reason(thing, why):
    with pytest.raises(ModelRejected, match=why):
        graph_of(saved(thing), "net.pth", (4,))


@pytest.mark.nightly
def test_a_graph_that_the_pickle_itself_has_written_is_read_as_a_stranger_s(tmp_path):
    class Writes:
        def __reduce__(self):
            code = "open(__import__('sys').argv[1], 'wb').write(b'PK evil') and __import__('os')._exit(0)"
            return eval, (code,)

    with pytest.raises(ModelRejected, match=r"\.pt2 archive"):
        from_exported(graph_of(saved(Writes()), "net.pth", (4,)))


@pytest.fixture
def folder(tmp_path, pickled):
    """What mlflow.pytorch writes with pickle, and a loader and code that would run under MLflow."""
    root = tmp_path / "model"
    (root / "data").mkdir(parents=True)
    (root / "code").mkdir()
    (root / "code/evil.py").write_text(f"open({str(pickled[2])!r}, 'w')")
    (root / "data/model.pth").write_bytes(pickled[0].read_bytes())
    (root / "data/pickle_module_info.txt").write_text("evil")
    flavours = {
        "pytorch": {"model_data": "data", "code": "code"},
        "python_function": {"loader_module": "evil", "code": "code", "env": {"conda": "evil.yaml"}},
    }
    (root / "MLmodel").write_text(yaml.safe_dump({"flavors": flavours}))
    return root


def test_of_mlflow_s_folder_only_the_pickle_s_bytes_are_taken(folder, pickled):
    assert pickle_in(folder) == pickled[0].read_bytes()
    assert not pickled[2].exists()


def test_a_pickle_that_is_a_link_or_lies_elsewhere_is_not_read(folder, pickled):
    (folder / "data/model.pth").unlink()
    (folder / "data/model.pth").symlink_to(pickled[0])
    with pytest.raises(ModelRejected, match="leaves the model's folder"):
        pickle_in(folder)
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": {"pytorch": {"model_data": ".."}}}))
    with pytest.raises(ModelRejected, match="leaves the model's folder"):
        pickle_in(folder)


def test_a_pickle_is_not_loaded_from_where_our_own_files_lie(tmp_path, pickled):
    from tasks.metrics.corpus import Corpus
    from tasks.results import load_arrays

    marker = pickled[2]
    import numpy as np

    raw = io.BytesIO()
    np.savez(raw, rows=np.array([Tells(marker, 1)], dtype=object))
    for read in (load_arrays, Corpus.from_bytes):
        with pytest.raises(Exception, match=r"(?i)pickle|cannot be used"):
            read(raw.getvalue())
    with pytest.raises(pickle.UnpicklingError):
        torch.load(pickled[0], weights_only=True)  # as a checkpoint of fit() is
    assert not marker.exists()
