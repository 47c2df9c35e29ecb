"""ONNX files against onnxruntime, operator by operator, and against the torch models that they were made from."""

import copy
import io
import re
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch import nn
from torch.nn import functional as F

from tasks.attacks import ThreatModel
from tasks.data import load
from tasks.errors import EvidenceBroken, ModelRejected, WrongInput
from tasks.metrics import measure
from tasks.models import build, digest_of, from_bytes, from_onnx
from tasks.models.operators import OPERATORS

# Each row: the operator, one row of x, and ONNX's own text for z. w_2_3 stands for random numbers of that shape, and
# p_2_3 for positive ones. z [N, ...] is flattened to the logits; an opset other than 20 is named.
OF_X = [(name, "3,4", f"z = {name} (x)", 20) for name in ("Abs", "Celu", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor")]
OF_X += [(name, "3,4", f"z = {name} (x)", 20) for name in ("Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu")]
OF_X += [(name, "3,4", f"z = {name} (x)", 20) for name in ("Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu")]
OF_X += [(name, "3,4", f"z = {name} (x)", 20) for name in ("Sigmoid", "Sign", "Sin", "Softplus", "Tanh", "Dropout")]
OF_TWO = [
    (name, "3,4", f"z = {name} (x, w_4)", 20) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")
]
COMPARED = [(name, "3,4", f"b = {name} (x, w_4) z = Cast <to = 1> (b)", 20) for name in ("Greater", "Less")]
COMPARED += [
    (name, "4", f"r = Round (x) q = Round (w_4) b = {name} (r, q) z = Cast <to = 1> (b)", 20)
    for name in ("Equal", "GreaterOrEqual", "LessOrEqual")
]
COMPARED += [
    (name, "4", f"a = Less (x, w_4) c = Less (x, p_4) b = {name} (a, c) z = Cast <to = 1> (b)", 20)
    for name in ("And", "Or")
]
COMPARED += [("Not", "4", "a = Less (x, w_4) b = Not (a) z = Cast <to = 1> (b)", 20)]
POINTWISE = [
    ("Log", "4", "a = Exp (x) z = Log (a)", 20),
    ("Sqrt", "4", "a = Exp (x) z = Sqrt (a)", 20),
    ("Pow", "4", "a = Exp (x) z = Pow (a, w_4)", 20),
    ("Pow", "4", "k = Constant <value_float = 2.0> () z = Pow (x, k)", 20),
    ("Elu", "4", "z = Elu <alpha = 0.3> (x)", 20),
    ("Celu", "4", "z = Celu <alpha = 0.3> (x)", 20),
    ("Gelu", "4", 'z = Gelu <approximate = "tanh"> (x)', 20),
    ("LeakyRelu", "4", "z = LeakyRelu <alpha = 0.3> (x)", 20),
    ("HardSigmoid", "4", "z = HardSigmoid <alpha = 0.4, beta = 0.1> (x)", 20),
    ("Selu", "4", "z = Selu <alpha = 1.2, gamma = 0.7> (x)", 20),
    ("ThresholdedRelu", "4", "z = ThresholdedRelu <alpha = 0.4> (x)", 20),
    ("PRelu", "3,4", "z = PRelu (x, w_3_1)", 20),
    ("Clip", "4", "a = Constant <value_float = -0.3> () b = Constant <value_float = 0.4> () z = Clip (x, a, b)", 20),
    ("Clip", "4", "a = Constant <value_float = 0.2> () z = Clip (x, , a)", 20),
    ("Clip", "4", "z = Clip <min = -0.3, max = 0.4> (x)", 10),
    ("Mod", "4", "z = Mod <fmod = 1> (x, p_4)", 20),
    ("Mod", "3,4", "s = Shape (x) k = Constant <value_ints = [2, 2, 3]> () m = Mod (s, k) f = Cast <to = 1> (m) "
     "t = ReduceSum <keepdims = 0> (f) z = Mul (x, t)", 20),
    ("Where", "4", "b = Less (x, w_4) z = Where (b, x, p_4)", 20),
    ("Cast", "4", "a = Cast <to = 7> (x) z = Cast <to = 1> (a)", 20),
    ("Cast", "4", "a = Cast <to = 11> (x) z = Cast <to = 1> (a)", 20),
]  # fmt: skip
NORMED = [
    ("Softmax", "3,4", "z = Softmax (x) ", 20),
    ("Softmax", "3,4", "z = Softmax <axis = 1> (x)", 20),
    ("Softmax", "3,4", "z = Softmax (x)", 11),
    ("LogSoftmax", "3,4", "z = LogSoftmax <axis = 1> (x)", 20),
    ("BatchNormalization", "3,4,4", "z = BatchNormalization (x, w_3, w_3, w_3, p_3)", 20),
    ("BatchNormalization", "5", "z = BatchNormalization <epsilon = 0.1> (x, w_5, w_5, w_5, p_5)", 20),
    ("InstanceNormalization", "3,4,4", "z = InstanceNormalization <epsilon = 0.01> (x, w_3, w_3)", 20),
    ("GroupNormalization", "4,3,3", "z = GroupNormalization <num_groups = 2> (x, w_4, w_4)", 21),
    ("LayerNormalization", "3,4", "z = LayerNormalization (x, w_4, w_4)", 20),
    ("LayerNormalization", "3,4", "z = LayerNormalization <axis = 1, epsilon = 0.01> (x, w_3_4)", 20),
]
LINEAR = [
    ("MatMul", "3,4", "z = MatMul (x, w_4_5)", 20),
    ("MatMul", "3,4", "t = Transpose <perm = [0, 2, 1]> (x) z = MatMul (x, t)", 20),
    ("Gemm", "4", "z = Gemm <transB = 1> (x, w_5_4, w_5)", 20),
    ("Gemm", "4", "z = Gemm <alpha = 0.5, beta = 2.0> (x, w_4_5, w_1_5)", 20),
    ("Gemm", "4", "t = Transpose (x) z = Gemm <transA = 1> (t, w_4_5)", 20),
    ("Conv", "2,6,6", "z = Conv <pads = [1, 1, 1, 1]> (x, w_3_2_3_3, w_3)", 20),
    ("Conv", "2,6,7", "z = Conv <strides = [2, 1], dilations = [1, 2], pads = [0, 1, 2, 3]> (x, w_3_2_3_3)", 20),
    ("Conv", "4,6,6", "z = Conv <group = 2> (x, w_6_2_3_3, w_6)", 20),
    ("Conv", "2,7", "z = Conv <strides = [2], pads = [1, 1]> (x, w_3_2_3, w_3)", 20),
    ("Conv", "2,4,4,4", "z = Conv (x, w_3_2_2_2_2)", 20),
    ("Conv", "2,5,6", 'z = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w_3_2_2_3)', 20),
    ("Conv", "2,5,6", 'z = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w_3_2_2_3)', 20),
    ("Conv", "2,5,6", 'z = Conv <auto_pad = "VALID"> (x, w_3_2_2_3)', 20),
    ("ConvTranspose", "2,4,4", "z = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w_2_3_3_3, w_3)", 20),
    ("ConvTranspose", "2,4", "z = ConvTranspose <strides = [2], output_padding = [1]> (x, w_2_3_3)", 20),
]
POOLED = [
    ("MaxPool", "2,6,6", "z = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)", 20),
    ("MaxPool", "2,7,7", "z = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)", 20),
    ("MaxPool", "2,7,7", "z = MaxPool <kernel_shape = [3, 3], pads = [0, 1, 2, 1]> (x)", 20),
    ("MaxPool", "2,7", "z = MaxPool <kernel_shape = [2], strides = [2], ceil_mode = 1> (x)", 20),
    ("MaxPool", "2,7,7", "z = MaxPool <kernel_shape = [2, 2], dilations = [2, 2]> (x)", 20),
    ("AveragePool", "2,6,6", "z = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x)", 20),
    ("AveragePool", "2,6,6", "z = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)", 20),
    ("AveragePool", "2,6,6", "z = AveragePool <kernel_shape = [3, 3], pads = [0, 1, 2, 1]> (x)", 20),
    ("AveragePool", "2,6", "z = AveragePool <kernel_shape = [3], pads = [1, 1], count_include_pad = 1> (x)", 20),
    ("GlobalAveragePool", "3,4,4", "z = GlobalAveragePool (x)", 20),
    ("GlobalMaxPool", "3,4,4", "z = GlobalMaxPool (x)", 20),
]
REDUCED = [
    (name, "3,4", f"a = Constant <value_ints = [1]> () z = {name} <keepdims = 0> (x, a)", 20)
    for name in ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
]
REDUCED += [
    (name, "3,4", f"z = {name} <axes = [-1]> (x)", 11)
    for name in ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
]
REDUCED += [
    ("ReduceSum", "3,4", "z = ReduceSum <noop_with_empty_axes = 1> (x)", 20),
    ("ReduceMean", "3,4", "a = ReduceMean (w_3_4) z = Add (x, a)", 20),
]
SHAPED = [
    ("Flatten", "3,4,2", "z = Flatten (x)", 20),
    ("Flatten", "3,4,2", "a = Flatten <axis = -1> (x) s = Constant <value_ints = [-1, 24]> () z = Reshape (a, s)", 20),
    ("Reshape", "3,4", "s = Constant <value_ints = [0, 2, -1]> () z = Reshape (x, s)", 20),
    ("Transpose", "3,4,2", "z = Transpose <perm = [0, 3, 1, 2]> (x)", 20),
    ("Transpose", "4", "a = Transpose (x) z = Transpose (a)", 20),
    ("Squeeze", "3,1,4", "a = Constant <value_ints = [2]> () z = Squeeze (x, a)", 20),
    ("Squeeze", "3,1,4", "z = Squeeze <axes = [-2]> (x)", 11),
    ("Unsqueeze", "3,4", "a = Constant <value_ints = [1, -1]> () z = Unsqueeze (x, a)", 20),
    ("Unsqueeze", "3,4", "z = Unsqueeze <axes = [2]> (x)", 11),
    ("Concat", "3,4", "z = Concat <axis = -1> (x, x)", 20),
    ("Split", "6", "s = Constant <value_ints = [2, 4]> () z, b = Split <axis = 1> (x, s)", 20),
    ("Split", "7", "a, z = Split <axis = 1, num_outputs = 2> (x)", 20),
    ("Split", "6", "a, z = Split <axis = 1> (x)", 13),
    ("Split", "6", "a, z = Split <axis = 1, split = [1, 5]> (x)", 11),
    ("Slice", "6,5", "s = Constant <value_ints = [1, -9]> () e = Constant <value_ints = [-1, 9]> () "
     "a = Constant <value_ints = [1, 2]> () t = Constant <value_ints = [2, 1]> () z = Slice (x, s, e, a, t)", 20),
    ("Slice", "6", "s = Constant <value_ints = [-1]> () e = Constant <value_ints = [-99]> () "
     "a = Constant <value_ints = [1]> () t = Constant <value_ints = [-2]> () z = Slice (x, s, e, a, t)", 20),
    ("Slice", "6", "z = Slice <starts = [1], ends = [4], axes = [1]> (x)", 9),
    ("Gather", "5,3", "i = Constant <value_int = -2> () z = Gather <axis = 1> (x, i)", 20),
    ("Gather", "5,3", "i = Constant <value = int64[2, 2] {0, 1, -1, 2}> () z = Gather <axis = 2> (x, i)", 20),
    ("Shape", "3,4", "a = Shape <start = 1> (x) f = Cast <to = 1> (a) "
     "b = ReduceSum <keepdims = 0> (f) z = Mul (x, b)", 20),
    ("Constant", "2", "k = Constant <value_floats = [1.5, 2.5]> () z = Mul (x, k)", 20),
    ("ConstantOfShape", "3,2", "s = Shape (x) k = ConstantOfShape <value = float[1] {1.5}> (s) z = Mul (x, k)", 20),
    ("ConstantOfShape", "3,2", "s = Shape (x) k = ConstantOfShape (s) z = Add (x, k)", 20),
    ("Expand", "3,1", "s = Constant <value_ints = [1, 3, 4]> () z = Expand (x, s)", 20),
    ("Tile", "3,2", "r = Constant <value_ints = [1, 2, 3]> () z = Tile (x, r)", 20),
    ("Range", "4", "a = Constant <value_float = 1.0> () b = Constant <value_float = 9.0> () "
     "c = Constant <value_float = 2.0> () r = Range (a, b, c) z = Mul (x, r)", 20),
    ("Trilu", "3,3", "z = Trilu (x)", 20),
    ("Trilu", "3,3", "k = Constant <value_int = -1> () z = Trilu <upper = 0> (x, k)", 20),
    ("Pad", "2,4,4", "p = Constant <value_ints = [0, 0, 1, 2, 0, 0, 0, 1]> () z = Pad (x, p, c_0)", 20),
    ("Pad", "2,4,4", "p = Constant <value_ints = [1, 2, 1, 2]> () a = Constant <value_ints = [2, 3]> () "
     'z = Pad <mode = "reflect"> (x, p, , a)', 20),
    ("Pad", "2,4", 'z = Pad <mode = "edge", pads = [0, 0, 1, 0, 0, 2]> (x)', 10),
    ("Resize", "2,3,3", "s = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> () z = Resize <"
     'coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (x, , s)', 20),
    ("Resize", "2,3,3", 's = Constant <value_floats = [1.0, 1.0, 2.0, 1.5]> () '
     'z = Resize <mode = "linear"> (x, , s)', 20),
    ("Resize", "2,3,3", 'n = Shape <end = 2> (x) k = Constant <value_ints = [5, 4]> () s = Concat <axis = 0> (n, k) '
     'z = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (x, , , s)', 20),
]  # fmt: skip
CASES = OF_X + OF_TWO + COMPARED + POINTWISE + NORMED + LINEAR + POOLED + REDUCED + SHAPED
X = torch.from_numpy(np.random.default_rng(1).random((5, 1, 8, 8), dtype=np.float32))


def graph_of(body: str, rest: str, *, opset: int = 20, batch: str = "N") -> onnx.ModelProto:
    """A file whose logits are z, flattened; the numbers that the body names are drawn."""
    rng, head = np.random.default_rng(0), f'<ir_version: 8, opset_import: ["": {opset}]>'
    text = f"{head} g (float[{batch},{rest}] x) => (float[{batch},M] y) {{ {body} y = Flatten (z) }}"
    model = parser.parse_model(text)
    for name in dict.fromkeys(re.findall(r"\b[wpc](?:_\d+)+\b", body)):
        sizes = [int(size) for size in name.split("_")[1:]] if name != "c_0" else []
        drawn = rng.normal(size=sizes) if name[0] == "w" else rng.random(sizes) + 0.3
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(drawn, np.float32), name))
    return model


def ask(model: onnx.ModelProto, x: np.ndarray, name: str = "y") -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([name], {"x": x})[0]


@pytest.mark.parametrize(("name", "rest", "body", "opset"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_an_operator_answers_as_in_onnxruntime_with_a_finite_slope(name, rest, body, opset):
    model = graph_of(body, rest, opset=opset)
    x = np.random.default_rng(2).normal(size=(4, *map(int, rest.split(",")))).astype(np.float32)
    leaf = torch.from_numpy(x).requires_grad_()
    logits = from_onnx(model.SerializeToString())(leaf)
    np.testing.assert_allclose(logits.detach().numpy(), ask(model, x), rtol=1e-4, atol=1e-5)
    if logits.requires_grad:
        (slope,) = torch.autograd.grad(logits.sum(), leaf)
        assert slope.isfinite().all()


def test_every_operator_of_the_table_has_a_case():
    assert {case[0] for case in CASES} == set(OPERATORS)


class Residual(nn.Module):
    """Two convolutions with batch normalisation, and a way around them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        return F.relu(x + self.norm2(self.second(F.relu(self.norm(self.first(x))))))


def resnet() -> nn.Module:
    start = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), Residual(), Residual()]
    return nn.Sequential(*start, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def mlp_with_softmax() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10), nn.Softmax(1))


class Attention(nn.Module):
    """Patches, a class token, one block of self-attention, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(1, 16, 2, 2), nn.Parameter(torch.randn(1, 1, 16))
        self.norm, self.mix = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 10))

    def forward(self, x):
        z = self.patches(x).flatten(2).transpose(1, 2)
        z = torch.cat([self.token.expand(x.shape[0], -1, -1), z], 1)
        h = self.norm(z)
        return self.head((z + self.mix(h, h, h, need_weights=False)[0])[:, 0])


def warmed(make) -> nn.Module:
    """The network with statistics of batches that are not those of its birth."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        model(torch.rand(64, 1, 8, 8))
    return model.eval()


def exported(model: nn.Module, *, rows: int = 2, fixed: bool = False) -> bytes:
    file = io.BytesIO()
    axes = None if fixed else {"x": {0: "N"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own exporter old; the new one needs onnxscript
        torch.onnx.export(model, (X[:rows],), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
    return file.getvalue()


def digits_cnn() -> nn.Module:
    return build("digits-cnn")


def slope(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Of cross-entropy for class 0, by x."""
    return torch.autograd.grad(F.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.int64)), x)[0]


@pytest.mark.parametrize("make", [digits_cnn, resnet, mlp_with_softmax, Attention])
def test_an_exported_network_has_torchs_logits_and_slopes(make):
    model = warmed(make)
    found = from_onnx(exported(model))
    assert found.removed == ("Softmax" if make is mlp_with_softmax else None)
    truth = model[:-1] if found.removed else model
    for rows in (1, 2, 5):
        ours, torchs = X[:rows].clone().requires_grad_(), X[:rows].clone().requires_grad_()
        torch.testing.assert_close(found(ours), truth(torchs), rtol=0, atol=1e-4)
        torch.testing.assert_close(slope(found, ours), slope(truth, torchs), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("make", [digits_cnn, resnet, Attention])
def test_a_network_follows_its_input_to_another_device(make):
    """The meta device computes no numbers, and refuses to mix with any other as a GPU does."""
    found = from_onnx(exported(warmed(make))).to("meta")
    logits = found(X.to("meta"))
    assert (logits.device.type, logits.shape) == ("meta", (5, 10))


@pytest.mark.parametrize(
    ("body", "rest"),
    [
        ("i = Constant <value = int64[2, 2] {0, 1, -1, 2}> () z = Gather <axis = 2> (x, i)", "5,3"),
        ("s = Shape (x) f = Cast <to = 1> (s) t = ReduceSum <keepdims = 0> (f) z = Mul (x, t)", "3,4"),
        ("a = Constant <value_float = -0.3> () z = Clip (x, a) ", "4"),
    ],
)
def test_numbers_that_stay_on_the_cpu_follow_where_they_are_computed_with(body, rest):
    found = from_onnx(graph_of(body, rest).SerializeToString()).to("meta")
    assert found(torch.zeros(2, *map(int, rest.split(",")), device="meta")).device.type == "meta"


def test_the_weights_of_a_file_count_as_frozen_weights():
    model, found = digits_cnn(), from_onnx(exported(digits_cnn()))
    assert sum(p.numel() for p in found.parameters()) == sum(p.numel() for p in model.parameters())
    assert not any(p.requires_grad for p in found.parameters())
    assert not found.train().eval().training


def test_a_softmax_that_saturates_is_removed_with_its_missing_slope():
    model = mlp_with_softmax().eval()
    with torch.no_grad():
        model[3].weight.mul_(1e4)
    x, y = X.clone().requires_grad_(), model(X).argmax(1)
    shut = torch.autograd.grad(model(x).gather(1, y[:, None]).sum(), x)[0]
    found = from_onnx(exported(model))
    open_ = torch.autograd.grad(found(x).gather(1, y[:, None]).sum(), x)[0]
    assert (shut == 0).all()
    assert (open_ != 0).any(dim=(1, 2, 3)).all()
    assert torch.equal(found(X).argmax(1), y)


@pytest.mark.parametrize("make", [digits_cnn, resnet])
def test_a_file_for_one_row_takes_any_batch_where_its_graph_allows_it(make):
    model = warmed(make)
    torch.testing.assert_close(from_onnx(exported(model, rows=1, fixed=True))(X), model(X), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("batch", "shape"), [("1", "1, 12"), ("1", "1, -1"), ("2", "2, 12")])
def test_a_batch_size_written_into_a_reshape_follows_x(batch, shape):
    body = f"s = Constant <value_ints = [{shape}]> () a = Reshape (x, s) z = MatMul (a, w_12_3)"
    x = np.random.default_rng(0).random((4, 3, 4), dtype=np.float32)
    model = graph_of(body, "3,4", batch=batch)
    truth = np.concatenate([ask(model, part) for part in np.split(x, 4 // int(batch))])
    np.testing.assert_allclose(from_onnx(model.SerializeToString())(torch.from_numpy(x)).numpy(), truth, rtol=1e-5)


@pytest.mark.parametrize(
    ("body", "batch"),
    [
        ("s = Constant <value_ints = [1, 4, 3]> () t = Transpose <perm = [1, 0, 2]> (x) z = Reshape (t, s)", "1"),
        ("z = Concat <axis = 1> (x, w_1_2_4)", "1"),
        ("z = Concat <axis = 1> (x, w_2_2_4)", "2"),
        ("s = Constant <value_ints = [1, 12]> () z = Reshape (x, s)", "N"),
        ("a = ReduceMean <keepdims = 1> (x) z = Add (x, a)", "1"),
        ("z = Squeeze (x)", "N"),
    ],
    ids=["rows change places", "one row beside", "two rows beside", "one row of N", "averaged", "one row is lost"],
)  # fmt: skip
def test_a_file_whose_graph_holds_its_batch_size_is_refused(body, batch):
    with pytest.raises(ModelRejected, match="dynamic batch dimension"):
        from_onnx(graph_of(body, "3,4", batch=batch).SerializeToString())


def planted(change) -> bytes:
    model = graph_of("z = Relu (x)", "4")
    change(model)
    return model.SerializeToString()


def of_another_domain(model):
    model.graph.node[0].domain = "com.acme"
    model.opset_import.append(helper.make_opsetid("com.acme", 1))


def with_a_function(model):
    inner = helper.make_node("Relu", ["a"], ["b"])
    model.functions.append(helper.make_function("acme", "Mine", ["a"], ["b"], [inner], [helper.make_opsetid("", 20)]))


def with_weights_elsewhere(path):
    def change(model):
        tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=path)
        model.graph.initializer.append(tensor)

    return change


def with_two_inputs(model):
    model.graph.input.append(helper.make_tensor_value_info("u", 1, [None, 4]))


def with_two_outputs(model):
    model.graph.output.append(helper.make_tensor_value_info("z", 1, [None, 4]))


def of_any_width(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "W"


def of_bytes(model):
    model.graph.input[0].type.tensor_type.elem_type = 2


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\x80\x04no onnx at all", "not an ONNX file"),
        (planted(of_another_domain), "'com.acme.Relu' is not in the table"),
        (planted(with_a_function), "functions of its own .'Mine'"),
        (planted(with_weights_elsewhere("../../etc/passwd")), "another file"),
        (planted(with_weights_elsewhere("/etc/passwd")), "another file"),
        (planted(with_two_inputs), "inputs are x, u"),
        (planted(with_two_outputs), "returns 2 tensors"),
        (planted(of_any_width), "all sizes but the first must be numbers"),
        (planted(of_bytes), "one tensor of float32"),
        (graph_of("z = Sinh (x)", "4").SerializeToString(), "'Sinh' is not in the table. Did you mean 'Sin'"),
        (graph_of("z = Relu (u)", "4").SerializeToString(), "onnx.checker refuses"),
        (graph_of("z = MatMul (x, w_4_1)", "4").SerializeToString(), "two classes or more"),
        (graph_of("a = MatMul (x, w_5_3) z = Add (a, x)", "4").SerializeToString(), "."),
        (graph_of("z, i = MaxPool <kernel_shape = [2]> (x)", "2,4").SerializeToString(), "second output"),
        (graph_of("s = Constant <value_ints = [99999, 99999]> () a = ConstantOfShape (s) z = MatMul (x, a)", "4")
         .SerializeToString(), "would fill"),
        (graph_of("a = Neg (p_4) k = Log (a) z = Add (x, k)", "4").SerializeToString(), "does not answer as"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_trusted_is_refused_with_its_reason(raw, why):
    with pytest.raises(ModelRejected, match=why):
        from_onnx(raw)


def test_a_batch_normalisation_in_training_mode_is_refused():
    body = "z, m, v = BatchNormalization <training_mode = 1> (x, w_3, w_3, w_3, p_3)"
    with pytest.raises(ModelRejected, match=r"second output|training mode"):
        from_onnx(graph_of(body, "3,4", opset=15).SerializeToString())


def test_a_label_beside_the_probabilities_is_left_alone():
    model = graph_of("a = MatMul (x, w_4_3) y = Softmax (a) l = ArgMax <axis = 1, keepdims = 0> (y) z = Relu (x)", "4")
    model.graph.node[-1].output[0] = "unused"
    model.graph.output.insert(0, helper.make_tensor_value_info("l", TensorProto.INT64, [None]))
    x = np.random.default_rng(0).random((5, 4), dtype=np.float32)
    found = from_onnx(model.SerializeToString())
    assert found.removed == "Softmax"
    np.testing.assert_allclose(found(torch.from_numpy(x)).softmax(1).numpy(), ask(model, x), rtol=1e-5)


def test_a_conversion_that_answers_otherwise_is_refused(monkeypatch):
    monkeypatch.setitem(OPERATORS, "Relu", lambda _, x: F.gelu(x))
    with pytest.raises(ModelRejected, match="the conversion of this file does not answer as onnxruntime does"):
        from_onnx(exported(digits_cnn()))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_packages_the_message_says_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(WrongInput, match=rf"package '{package}'.*pip install 'redoubt\[onnx\]'"):
        from_onnx(b"")


def test_changed_bytes_are_refused_before_they_are_read():
    raw = exported(digits_cnn())
    digest = digest_of(raw)
    torch.testing.assert_close(from_bytes("m.onnx", raw, digest, "onnx")(X), digits_cnn()(X), rtol=0, atol=1e-4)
    for place in (0, len(raw) // 2, len(raw) - 1):
        changed = bytearray(raw)
        changed[place] ^= 1
        with pytest.raises(EvidenceBroken, match="hash to"):
            from_bytes("m.onnx", bytes(changed), digest, "onnx")


def test_a_file_measures_as_the_network_that_it_was_made_from():
    model = trained_digits()
    x, y = (part[:100] for part in load("digits")["test"])
    threat = ThreatModel(norm="linf", eps=0.1)
    found = from_onnx(exported(copy.deepcopy(model)))
    truth, ours = (measure(m, x, y, threat=threat, suite="quick") for m in (model, found))
    assert ours.robust_accuracy == truth.robust_accuracy
    assert 0.05 < truth.robust_accuracy < truth.clean_accuracy


def trained_digits() -> nn.Module:
    """A digits network after a few steps: right on most, and not robust on all."""
    torch.manual_seed(0)
    model, (x, y) = digits_cnn(), load("digits")["train"]
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for batch in torch.randperm(len(x)).repeat(4).split(64):
        optimiser.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimiser.step()
    return model.eval()
