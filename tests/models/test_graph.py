"""Exported graphs: they answer as their model does, or are refused before anything in them has run."""

import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tasks.attacks import ThreatModel
from tasks.attacks.front import shown
from tasks.attacks.straight_through import StraightThrough
from tasks.data import load
from tasks.errors import EvidenceBroken, ModelRejected
from tasks.metrics import measure
from tasks.models import EXPORTING, build, check_model, digest_of, from_bytes, from_exported
from tasks.models.planted import Detached, Quantised
from tests.models.given import Payload, X, digits


class Everything(nn.Module):
    """What exports are made of: sizes, buffers, several results, lists, constants, a recurrent layer, mixed types."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("hidden", torch.arange(10.0), persistent=False)
        self.norm, self.walk, self.head = nn.BatchNorm1d(64), nn.GRU(8, 10, batch_first=True), nn.Linear(64, 10)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        largest, _ = x.flatten(1).max(1, keepdim=True)
        left, right = self.norm(x.flatten(1)).split(32, 1)
        z = torch.cat([left, right * torch.tensor([2.0])], 1).to(torch.float64).float()
        z = torch.where(z > 0.5, z, 2 * z).clamp(-float("inf"), 3).masked_fill(z < 0.1, 0) + torch.linspace(0, 1, 64)
        walked, _ = self.walk(self.mix(x[:, 0], x[:, 0], x[:, 0])[0])
        return self.head(z).view(x.shape[0], -1) + largest + self.hidden + torch.einsum("bij->bj", walked)


class Changing(nn.Module):
    """Counts its own calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build("digits-cnn")
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        return self.net(x) + self.calls


class Viewed(nn.Module):
    """Flattens by a view, which torch refuses where channels come last."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.net(x).view(x.shape[0], -1)


class TwoInputs(nn.Module):
    def forward(self, x, u):
        return (x + u).flatten(1)


class TwoResults(nn.Module):
    def forward(self, x):
        return x.flatten(1), x


def quantised() -> nn.Module:
    return Quantised(digits())


def detached() -> nn.Module:
    return Detached(digits())


def archive(model: nn.Module, *inputs: torch.Tensor, rows: int = 2) -> bytes:
    """The model as torch.export keeps it, for any batch size if rows is not one."""
    given = inputs or (X[:rows],)
    sizes = tuple({0: torch.export.Dim.AUTO} for _ in given)
    file = io.BytesIO()
    with EXPORTING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch.export says of its own insides
        torch.export.save(torch.export.export(model, given, dynamic_shapes=sizes), file)
    return file.getvalue()


@pytest.fixture(scope="module")
def plain() -> bytes:
    return archive(digits().eval())


def rewritten(raw: bytes, change: Callable[[str, bytes], bytes], **more: bytes) -> bytes:
    """The archive with every member changed, and further ones."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as before, zipfile.ZipFile(out, "w") as after:
        for name in before.namelist():
            after.writestr(name, change(name, before.read(name)))
        for name, content in more.items():
            after.writestr(name, content)
    return out.getvalue()


def with_graph(raw: bytes, change: Callable[[dict], None]) -> bytes:
    """The archive with its graph changed."""

    def changed(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return rewritten(raw, changed)


@pytest.mark.parametrize("make", [digits, quantised, detached, Everything])
def test_a_graph_answers_and_slopes_as_its_model_for_any_batch(make):
    torch.manual_seed(0)
    model = make().eval()
    found = from_exported(archive(model))
    assert not found.training
    for rows in (1, 2, 5):
        ours, torchs = X[:rows].clone().requires_grad_(), X[:rows].clone().requires_grad_()
        logits, truth = found(ours), model(torchs)
        torch.testing.assert_close(logits, truth, rtol=0, atol=1e-6)
        for answer in (logits, truth):
            answer.logsumexp(1).sum().backward()
        assert (ours.grad is None) == (torchs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, torchs.grad, rtol=0, atol=1e-6)


def test_a_graph_follows_its_input_to_another_device():
    """The meta device computes no numbers, and refuses to mix with any other as a GPU does."""
    found = from_exported(archive(Everything().eval())).to("meta")
    logits = found(X.to("meta"))
    assert (logits.device.type, logits.shape) == ("meta", (5, 10))


def test_a_graph_takes_train_and_eval_and_keeps_its_weights(plain):
    found = from_exported(plain)
    torch.testing.assert_close(found.train()(X), found.eval()(X), rtol=0, atol=0)
    assert sum(p.numel() for p in found.parameters()) == sum(p.numel() for p in digits().parameters())


def test_a_graph_takes_images_in_any_layout():
    x = X.expand(-1, 3, -1, -1).contiguous()
    found = from_exported(archive(Viewed().eval(), x))
    torch.testing.assert_close(found(x.contiguous(memory_format=torch.channels_last)), found(x))


def test_hard_operations_of_a_graph_are_met_by_their_names():
    x = X.clone().requires_grad_()
    model = StraightThrough(from_exported(archive(quantised().eval())))
    (slope,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x)
    assert (slope != 0).any(dim=(1, 2, 3)).all()


def test_the_first_layer_of_a_graph_tells_what_it_is_given():
    found = shown(from_exported(archive(quantised().eval())), X)
    torch.testing.assert_close(found, (X * 4).round() / 4)


def test_a_graph_measures_as_the_network_that_it_was_made_from(trained):
    x, y = (part[:100] for part in load("digits")["test"])
    threat = ThreatModel(norm="linf", eps=0.1)
    truth = measure(trained, x, y, threat=threat, suite="quick")
    found = measure(from_exported(archive(trained)), x, y, threat=threat, suite="quick")
    assert found.robust_accuracy == truth.robust_accuracy
    assert 0.05 < truth.robust_accuracy < truth.clean_accuracy


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    model, (x, y) = digits(), load("digits")["train"]
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for batch in torch.randperm(len(x)).repeat(4).split(64):
        optimiser.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimiser.step()
    return model.eval()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: archive(digits().eval(), rows=1), "batches of exactly 1.*two or more rows.*dynamic batch dimension"),
        (lambda: archive(nn.Sequential(digits(), nn.Dropout(0.5)).train()), r"training mode.*model.eval\(\)"),
        (lambda: archive(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64)).train()), r"training mode|own weights"),
        (lambda: archive(Changing().eval()), "own weights|own state"),
        (lambda: archive(TwoInputs(), X[:2], X[:2]), "takes 2 inputs"),
        (lambda: archive(TwoResults()), "besides one tensor of logits"),
    ],
    ids=["one row", "dropout", "batch statistics", "changes itself", "two inputs", "two results"],
)  # fmt: skip
def test_a_graph_that_is_no_classifier_at_rest_is_refused(make, why):
    with pytest.raises(ModelRejected, match=why):
        from_exported(make())


def test_a_pickle_among_the_weights_does_not_run(plain, marker):
    evil = pickle.dumps(Payload(marker))

    def as_weights(name: str, content: bytes) -> bytes:
        if name.endswith("weights/weight_0"):
            return evil
        return (
            content.replace(b'"use_pickle": false', b'"use_pickle": true') if name.endswith("config.json") else content
        )

    with pytest.raises(ModelRejected, match="kept as a pickle"):
        from_exported(rewritten(plain, as_weights))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_among_the_sample_inputs_does_not_run(plain, marker, protocol):
    file = io.BytesIO()
    torch.save(Payload(marker), file, pickle_protocol=protocol)

    def change(name: str, content: bytes) -> bytes:
        return file.getvalue() if name.endswith("sample_inputs/model.pt") else content

    with pytest.raises(ModelRejected, match="pickle that would call"):
        from_exported(rewritten(plain, change))
    with pytest.raises(ModelRejected, match=r"not a file of torch\.save"):
        from_exported(rewritten(plain, lambda name, old: pickle.dumps(Payload(marker)) if "sample" in name else old))


@pytest.mark.parametrize("name", ["custom_obj_0", "opaque_obj_0"])
def test_an_object_among_the_constants_does_not_run(plain, marker, name):
    with pytest.raises(ModelRejected, match=f"{name}.*may run code"):
        from_exported(
            rewritten(plain, lambda _, old: old, **{f"archive/data/constants/{name}": pickle.dumps(Payload(marker))})
        )


def test_a_size_that_is_python_does_not_run_though_torch_would_run_it(plain, marker):
    """sympy evaluates the strings that describe sizes: torch.export.load runs this, pickle or not."""
    line = f"__import__('os').system('touch {marker}') or "
    symbol = re.compile(rb"Symbol\('s\d+', positive=True, integer=True\)")

    def change(name: str, content: bytes) -> bytes:
        return symbol.sub(lambda found: line.encode() + found[0], content)

    raw = rewritten(plain, change)
    assert raw.count(line.encode()) > 3
    torch.testing.assert_close(from_exported(raw)(X), digits()(X))  # it is not read
    assert not marker.exists()
    with EXPORTING:
        torch.export.load(io.BytesIO(raw))
    assert marker.exists()  # so the danger is real, and the test asks the right question
    marker.unlink()


def calls(target: str, argument: str, value: str) -> Callable[[dict], None]:
    """Puts a call of the target first in the graph."""

    def change(document: dict) -> None:
        given = [{"name": argument, "arg": {"as_string": value}, "kind": 1}]
        node = {"target": target, "inputs": given, "outputs": [], "metadata": {}}
        document["graph_module"]["graph"]["nodes"].insert(0, node)

    return change


@pytest.mark.parametrize(
    ("target", "argument", "why"),
    [
        ("torch.os.system", "command", "none of torch's plain operations"),
        ("torch.hub.load", "repo", "none of torch's plain operations"),
        ("torch.ops.aten.relu.__class__", "self", "none of torch's plain operations"),
        ("torch.ops.acme.mine.default", "self", "none of torch's plain operations"),
        ("torch.ops.higher_order.call_torchbind", "self", "none of torch's plain operations"),
        ("_operator.attrgetter", "attr", "none of torch's plain operations"),
        ("math.__loader__", "x", "none of torch's plain operations"),
        ("#acme:mine", "x", "none of torch's plain operations"),
        ("", "x", "none of torch's plain operations"),
        ("torch.ops.aten.save.default", "item", "unknown or not safe"),
        ("torch.ops.aten.warn.default", "message", "unknown or not safe"),
        ("torch.ops.aten.from_file.default", "filename", "unknown or not safe"),
        ("torch.ops.aten._print.default", "s", "unknown or not safe"),
        ("torch.ops.aten._linalg_check_errors.default", "api_name", "unknown or not safe"),
    ],
)
def test_a_call_of_anything_but_plain_operations_is_refused(plain, marker, target, argument, why):
    raw = with_graph(plain, calls(target, argument, f"touch {marker}"))
    with pytest.raises(ModelRejected, match=f"the graph calls '{re.escape(target)}'.*{why}"):
        from_exported(raw)


def test_an_argument_that_is_not_given_has_its_default(plain):
    def without_the_first_stride(document):
        first = document["graph_module"]["graph"]["nodes"][0]
        assert [entry["name"] for entry in first["inputs"]] == ["input", "weight", "bias", "stride", "padding"]
        del first["inputs"][3]

    torch.testing.assert_close(from_exported(with_graph(plain, without_the_first_stride))(X), digits()(X))


def of_schema_nine(document):
    document["schema_version"]["major"] = 9


def without_a_signature(document):
    del document["graph_module"]["signature"]


def with_an_unknown_value(document):
    document["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = {"as_custom_obj": {"name": "x"}}


def with_an_unknown_argument(document):
    document["graph_module"]["graph"]["nodes"][0]["inputs"][0]["name"] = "acme"


def that_is_a_list(document):
    document["graph_module"] = []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (of_schema_nine, "schema 9"),
        (without_a_signature, "not as torch.export writes it.*signature"),
        (with_an_unknown_value, "as_custom_obj"),
        (with_an_unknown_argument, "acme"),
        (that_is_a_list, "not as torch.export writes it"),
    ],
)
def test_a_graph_of_another_form_is_refused(plain, change, why):
    with pytest.raises(ModelRejected, match=why):
        from_exported(with_graph(plain, change))


def members(raw: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        return {name: file.read(name) for name in file.namelist()}


def zipped(entries: list[tuple[str, bytes]], how: int = zipfile.ZIP_STORED, packed: str = "") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content in entries:
            file.writestr(name, content, zipfile.ZIP_DEFLATED if name == packed else how)
    return out.getvalue()


def claiming(raw: bytes, size: int) -> bytes:
    """The archive whose directory says that its first member has `size` bytes."""
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        place = file.start_dir + 24
    return raw[:place] + size.to_bytes(4, "little") + raw[place + 4 :]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda raw: b"PK\x05\x06 nothing", r"not a \.pt2 archive"),
        (lambda raw: raw[: len(raw) // 2], r"not a \.pt2 archive"),
        (lambda raw: zipped(list(members(raw).items()), zipfile.ZIP_DEFLATED), "compressed"),
        (lambda raw: zipped(list(members(raw).items()), packed="archive/byteorder"), "byteorder' is compressed"),
        (lambda raw: zipped([*members(raw).items(), ("archive/../../evil", b"")]), "leaves the archive's folder"),
        (lambda raw: zipped([*members(raw).items(), ("/etc/evil", b"")]), "leaves the archive's folder"),
        (lambda raw: zipped([*members(raw).items(), ("elsewhere/version", b"")]), "leaves the archive's folder"),
        (lambda raw: zipped([*members(raw).items(), ("archive/version", b""), ("archive/version", b"")]), "twice"),
        (lambda raw: zipped([*members(raw).items(), ("archive/data/aotinductor/model/m.so", b"")]), "may run code"),
        (lambda raw: zipped([*members(raw).items(), ("archive/models/other.json", b"{}")]), "may run code"),
        (lambda raw: claiming(raw, 2**32 - 2), "would grow"),
        (lambda raw: rewritten(raw, lambda n, c: b"big" if n.endswith("byteorder") else c), "stored as b'big'"),
        (lambda raw: rewritten(raw, lambda n, c: b"{" if n.endswith("model.json") else c), "not JSON"),
        (lambda raw: rewritten(raw, lambda n, c: b"[" * 10**6 if n.endswith("model.json") else c), "not JSON"),
        (lambda raw: zipped([e for e in members(raw).items() if not e[0].endswith("weight_0")]), "has no .*weight_0"),
        (lambda raw: rewritten(raw, lambda n, c: c[:-4] if n.endswith("weight_4") else c), "not as torch"),
        (lambda raw: rewritten(raw, lambda n, c: c.replace(b'{"as_int": 768}', b'{"as_int": 76800000000}')), "claims"),
    ],
)  # fmt: skip
def test_an_archive_that_is_not_what_torch_writes_is_refused(plain, change, why):
    with pytest.raises(ModelRejected, match=why):
        from_exported(change(plain))


def test_an_archive_that_declares_more_than_can_be_meant_is_refused(plain, monkeypatch):
    monkeypatch.setattr("tasks.models.archive.LARGEST", 10_000)
    with pytest.raises(ModelRejected, match="at most 10000"):
        from_exported(plain)


def test_a_model_is_checked_with_the_lock_of_exporting_held(monkeypatch):
    held, export = [], torch.export.export

    def watched(*given, **how):
        held.append(EXPORTING.locked())
        return export(*given, **how)

    monkeypatch.setattr(torch.export, "export", watched)
    check_model(digits(), "digits-cnn", X, 10)
    assert held == [True]
    assert not EXPORTING.locked()


def test_changed_bytes_of_a_graph_are_refused_before_they_are_read(plain):
    torch.testing.assert_close(from_bytes("m", plain, digest_of(plain), "graph")(X), digits()(X))
    with pytest.raises(EvidenceBroken, match="hash to"):
        from_bytes("m", plain[:-1], digest_of(plain), "graph")
