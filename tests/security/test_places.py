"""Where artifacts are read from: this store, and no path that climbs, hides or follows a link."""

from pathlib import Path

import pytest

from tasks.errors import EvidenceBroken
from tasks.track import client, load_bytes, log_bytes
from tasks.track.models import download, model_artifacts


@pytest.fixture
def run(home):
    store = client()
    run_id = store.create_run(store.create_experiment("theirs", artifact_location=(home / "kept").as_uri())).info.run_id
    log_bytes(run_id, b"kept", "weights/model.onnx")
    (home / "secret").write_text("secret")
    return run_id


SECRET = "../../../secret"


def test_what_lies_in_the_run_is_read(run):
    assert load_bytes(f"runs:/{run}/weights/model.onnx") == b"kept"


@pytest.mark.parametrize(
    "uri",
    [
        f"runs:/RUN/{SECRET}",
        f"runs:/RUN/weights/../{SECRET}",
        "runs:/RUN/%2e%2e/%2e%2e/%2e%2e/secret",
        "runs:/RUN/%252e%252e/secret",
        "runs:/RUN/weights%2f..%2f..%2f..%2f..%2fsecret",
        "runs:/RUN/..\\..\\secret",
        "runs:/RUN//etc/passwd",
        "runs:/RUN/~/secret",
        "runs:/RUN/weights/model.onnx?x#y",
        "runs:/RUN/weights/\x00model.onnx",
        "runs:/../RUN/weights/model.onnx",
        "runs:/RUN/../RUN/weights/model.onnx",
        "runs://host/RUN/weights/model.onnx",
        "file:///etc/passwd",
        "/etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "s3://bucket/key",
        "mlflow-artifacts:/../../x",
        "models:/name/1/../../x",
        "models:/m-0/../x",
        "models:/name@champion/x",
        "models:/../name/1",
        "dbfs:/x",
        "",
    ],
)
def test_a_uri_that_leads_elsewhere_is_refused(run, uri):
    with pytest.raises(EvidenceBroken, match="no place in this store"):
        load_bytes(uri.replace("RUN", run))


@pytest.mark.parametrize("uri", ["file:///etc", "/etc", "runs:/../x", "mlflow-artifacts:/x", "http://127.0.0.1:1/x"])
def test_a_logged_model_is_looked_for_in_this_store_only(home, tmp_path, uri):
    with pytest.raises(EvidenceBroken, match="no place in this store"):
        download(uri, str(tmp_path))
    with pytest.raises(EvidenceBroken, match="no place in this store"):
        model_artifacts(uri)


@pytest.mark.parametrize("linked", ["weights/model.bin", "linked/secret", "linked"])
def test_a_link_in_a_folder_on_this_machine_is_not_followed(run, home, linked):
    kept = Path(client().get_run(run).info.artifact_uri.removeprefix("file://"))
    (kept / "weights/model.bin").symlink_to(home / "secret")
    (kept / "linked").symlink_to(home)
    with pytest.raises(EvidenceBroken, match="a link"):
        load_bytes(f"runs:/{run}/{linked}")
    with pytest.raises(EvidenceBroken, match="a link"):  # in a folder that is fetched whole
        load_bytes(f"runs:/{run}/weights")
