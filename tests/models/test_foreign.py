"""Models that others have logged: found and loaded whole, or refused before anything in them has run."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tasks.errors import DataMissing, ModelRejected
from tasks.models import EXPORTING, bytes_in, digest_of, found_in, from_bytes, from_exported
from tests.models.given import Payload, X, digits


@pytest.fixture
def logged(home: Path, tmp_path: Path) -> Callable[..., Path]:
    """Logs a model with one of MLflow's flavours, and gives the folder that MLflow wrote."""

    def log(flavour: str, model: object, **how: object) -> Path:
        from tasks.track import client

        client()
        with EXPORTING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what MLflow says of its own insides
            import mlflow

            place = (tmp_path / "artifacts").as_uri()
            experiment = mlflow.create_experiment(f"foreign-{len(list(tmp_path.iterdir()))}", artifact_location=place)
            with mlflow.start_run(experiment_id=experiment):
                module = __import__(f"mlflow.{flavour}", fromlist=["log_model"])
                info = module.log_model(model, name="model", pip_requirements=["torch"], **how)
            return Path(mlflow.artifacts.download_artifacts(f"models:/{info.model_id}", dst_path=str(tmp_path / "got")))

    return log


def test_a_logged_torch_graph_is_found_and_loads(logged):
    model = digits().eval()
    folder = logged("pytorch", model, input_example=X[:2].numpy(), serialization_format="pt2")
    assert found_in(folder) == ("graph", folder / "data" / "model.pt2")
    kind, raw = bytes_in(folder)
    torch.testing.assert_close(from_bytes("m", raw, digest_of(raw), kind)(X), model(X), rtol=0, atol=1e-6)


def test_a_logged_graph_of_one_row_says_how_to_log_it(logged):
    folder = logged("pytorch", digits().eval(), input_example=X[:1].numpy(), serialization_format="pt2")
    with pytest.raises(ModelRejected, match=r"input_example=x\[:2\]"):
        from_exported(found_in(folder)[1].read_bytes())


@pytest.mark.parametrize("outside", [True, False], ids=["weights beside it", "all in one"])
def test_a_logged_onnx_model_is_found_and_loads(logged, outside):
    import onnx

    model, file = digits().eval(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own exporter old
        torch.onnx.export(model, (X[:2],), file, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "N"}})
    folder = logged("onnx", onnx.load_model_from_string(file.getvalue()), save_as_external_data=outside)
    assert found_in(folder) == ("onnx", folder / "model.onnx")
    assert outside == any(path.suffix == ".data" for path in folder.iterdir())
    kind, raw = bytes_in(folder)
    torch.testing.assert_close(from_bytes("m", raw, digest_of(raw), kind)(X), model(X), rtol=0, atol=1e-4)


def test_a_logged_pickle_is_refused_with_what_to_do_instead(logged):
    folder = logged("pytorch", digits(), serialization_format="pickle")
    with pytest.raises(
        ModelRejected, match=r"would run code when loaded.*serialization_format='pt2'.*package\.module:fun"
    ):
        found_in(folder)


TORCH = {"pytorch": {"model_data": "data", "code": None}, "python_function": {"loader_module": "mlflow.pytorch"}}
ONNX = {"onnx": {"data": "model.onnx"}, "python_function": {"loader_module": "mlflow.onnx"}}


def folder_of(place: Path, flavours: object, *files: str) -> Path:
    folder = place / "model"
    folder.mkdir(parents=True)
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavours}))
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("flavours", "files", "why"),
    [
        (TORCH, ["data/model.pth", "data/model.pt2"], "pickle .model.pth"),
        (TORCH, ["data/pickle_module_info.txt", "data/model.pt2"], "pickle"),
        (TORCH | {"pytorch": {"model_data": "data", "code": "code"}}, ["data/model.pt2", "code/x.py"], "brings code"),
        (
            TORCH | {"python_function": {"loader_module": "mlflow.pytorch", "code": "c"}},
            ["data/model.pt2"],
            "brings code",
        ),
        (TORCH | {"python_function": {"model_code_path": "m.py"}}, ["data/model.pt2"], "brings code"),
        (TORCH | {"python_function": {"loader_module": "acme.loader"}}, ["data/model.pt2"], "loaded by 'acme.loader'"),
        (TORCH | ONNX, ["data/model.pt2", "model.onnx"], "neither torch nor ONNX"),
        ({"sklearn": {"pickled_model": "model.pkl"}}, ["model.pkl"], "neither torch nor ONNX .'sklearn'"),
        ({"x" * 999: {}}, [], "neither torch nor ONNX .without a proper name"),
        ({}, [], "neither torch nor ONNX"),
        (["pytorch"], [], "names no flavours"),
        ({"pytorch": None}, [], "names no flavours"),
        ({"pytorch": {"model_data": "../outside"}}, [], "leaves the model's folder"),
        ({"pytorch": {"model_data": "data/../../outside"}}, [], "leaves the model's folder"),
        ({"pytorch": {"model_data": "/etc"}}, [], "leaves the model's folder"),
        ({"pytorch": {"model_data": ["data"]}}, [], "names no folder"),
        ({"onnx": {"data": "../outside/model.onnx"}}, [], "leaves the model's folder"),
        ({"onnx": {"data": "/etc/passwd"}}, [], "leaves the model's folder"),
        ({"onnx": {"data": 7}}, [], "names no path"),
    ],
)
def test_a_folder_that_would_run_code_or_leads_elsewhere_is_refused(tmp_path, flavours, files, why):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "model.pt2").write_bytes(b"")
    (tmp_path / "outside" / "model.onnx").write_bytes(b"")
    with pytest.raises(ModelRejected, match=why):
        found_in(folder_of(tmp_path, flavours, *files))


@pytest.mark.parametrize("linked", ["MLmodel", "data", "data/model.pt2"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, linked):
    folder = folder_of(tmp_path, TORCH, "data/model.pt2")
    (folder / linked).rename(tmp_path / "moved")
    (folder / linked).symlink_to(tmp_path / "moved")
    with pytest.raises(ModelRejected, match="leaves the model's folder"):
        found_in(folder)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: &a [1,1]\nb: &b [*a,*a]\nc: &c [*b,*b]\nflavors: {pytorch: {model_data: data, x: *c}}", "aliases"),
        ("flavors: !!python/object/apply:os.system ['touch {marker}']", "not YAML: ConstructorError"),
        ("flavors: " + "[" * 100 + "]" * 100, "nested"),
        ("flavors: " + "[" * 10**5, "nested"),
        ("flavors: {pytorch: {model_data: data}}\nrows: [" + "1," * 10**5 + "1]", "long"),
        ("flavors: {pytorch: {model_data: data}}\n# " + "x" * 2**20, "bytes; at most"),
        ("flavors: [unclosed", "not YAML: ParserError"),
        ("\x00", "not YAML: ReaderError"),
    ],
    ids=["bomb", "object", "nested", "deep", "long", "large", "broken", "binary"],
)
def test_an_mlmodel_that_is_a_trap_is_refused(tmp_path, marker, text, why):
    folder = folder_of(tmp_path, TORCH, "data/model.pt2")
    (folder / "MLmodel").write_text(text.replace("{marker}", str(marker)))
    with pytest.raises(ModelRejected, match=f"MLmodel.*{why}"):
        found_in(folder)


def test_a_folder_without_its_files_says_which_is_missing(tmp_path):
    with pytest.raises(DataMissing, match=r"no 'data/model\.pt2'"):
        found_in(folder_of(tmp_path / "a", TORCH, "data/other"))
    with pytest.raises(DataMissing, match="no 'MLmodel'"):
        found_in(tmp_path)


def test_a_pickle_renamed_to_a_graph_does_not_run(tmp_path, marker):
    folder = folder_of(tmp_path, TORCH, "data/model.pt2")
    torch.save(Payload(marker), folder / "data" / "model.pt2")
    kind, path = found_in(folder)
    raw = path.read_bytes()
    with pytest.raises(ModelRejected, match=r"data\.pkl.*may run code"):
        from_bytes("m", raw, digest_of(raw), kind)


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ({"location": "../outside", "length": "4"}, "no place in a file here"),
        ({"location": "/etc/passwd", "length": "4"}, "no place in a file here"),
        ({"location": "linked", "length": "4"}, "leaves the model's folder"),
        ({"location": "there", "length": "5"}, "5 bytes, but 4 are there"),
        ({"location": "there", "offset": "-1", "length": "4"}, "no place in a file here"),
        ({"location": "there", "length": "999999999999"}, "more than"),
    ],
)
def test_onnx_weights_beside_the_file_are_read_from_its_folder_only(tmp_path, where, why):
    import onnx

    (tmp_path / "outside").write_bytes(b"abcd")
    folder = folder_of(tmp_path, ONNX, "there")
    (folder / "there").write_bytes(b"abcd")
    (folder / "linked").symlink_to(tmp_path / "outside")
    model = onnx.ModelProto()
    tensor = model.graph.initializer.add(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in where.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelRejected, match=why):
        bytes_in(folder)
