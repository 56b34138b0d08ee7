"""Attention by cuDNN, which is optional. Without a GPU: what happens if it is missing, when it is chosen, and which shapes, strides and
addresses cuDNN gets, with a fake that records them. With a GPU and cuDNN: the results against the definition in float64, their bits, and a
CUDA graph.
"""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2_numba import train
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, bfloat16_bits, bfloat16_values, copy_to_host, to_device
from gpt2_numba.gpu.graph import Graphs
from gpt2_numba.gpu.reductions import partials_size
from gpt2_numba.layers.fast import attention as package
from gpt2_numba.layers.fast.attention import cudnn as attention
from gpt2_numba.layers.fast.attention import matmuls, mma, wgmma
from gpt2_numba.training import preparation
from gpt2_numba.training.settings import SHARD_DEFAULTS

B, T, NH, HS = 2, 5, 3, 8
C, N = NH * HS, B * T
WORKSPACE = 4096  # bytes that the fake requests for backward
needs_cudnn = pytest.mark.skipif(not attention.cudnn_available(), reason=f"cuDNN: {attention._obstacle()}")


@pytest.fixture
def empty_caches():
    """Clear what this process has cached about its cuDNN, before and after a test that changes it."""
    cached = (attention._obstacle, attention._library, attention._plan)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


# ------------------------------------------------------------------------------------------------------- missing


def install(monkeypatch, version=None, error=None):
    """Fake a GPU and a package `cudnn` whose library has this version or raises this error; no package if neither is given."""

    def backend_version():
        if error is not None:
            raise error
        return version

    package = None  # import then raises ImportError
    if version is not None or error is not None:
        package = SimpleNamespace(backend_version=backend_version, backend_version_string=lambda: "8.9.7")
    monkeypatch.setattr(attention, "real_gpu", lambda: True)
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", SimpleNamespace(load_nvidia_dynamic_lib=lambda name: None))
    monkeypatch.setitem(sys.modules, "cudnn", package)


@pytest.mark.parametrize(
    "faked, message",
    [
        ({}, "package `cudnn` or its library cannot be loaded"),
        ({"error": RuntimeError("Unable to find symbol cudnnGetVersion")}, "cannot be loaded .*cudnnGetVersion"),
        ({"version": 8907}, "cuDNN 8.9.7 is too old; 9.16 or later is needed"),
        ({"version": 91599}, "too old"),
    ],
)
def test_errors_name_the_obstacle_and_the_command_that_removes_it(monkeypatch, empty_caches, faked, message):
    install(monkeypatch, **faked)
    assert not attention.cudnn_available()
    with pytest.raises(UserError, match=message + r".*pip install -e '\.\[cudnn13\]'"):
        package.choose_engine("cudnn")


def test_a_recent_library_is_available(monkeypatch, empty_caches):
    install(monkeypatch, version=91600)
    assert attention.cudnn_available()


def test_without_a_gpu_it_is_not_available(monkeypatch, empty_caches):
    install(monkeypatch, version=91900)
    monkeypatch.setattr(attention, "real_gpu", lambda: False)
    assert not attention.cudnn_available()
    with pytest.raises(UserError, match=r"there is no real GPU\. Choose another attention \(--attention numba\)"):
        attention._library()


# ---------------------------------------------------------------------------------------------- choice of engine


@pytest.fixture
def machine(monkeypatch):
    """A function that fakes the machine. The choice of engine is auto, and restored afterwards."""

    def fake(hopper=True, installed=True):
        monkeypatch.setattr(package, "_on_hopper", lambda: hopper)
        obstacle = None if installed else "it is not installed"
        monkeypatch.setattr(attention, "_obstacle", lambda: obstacle)

    monkeypatch.setattr(package, "_choice", "auto")
    return fake


@pytest.mark.parametrize(
    "choice, HS, expected",
    [("numba", 64, wgmma), ("numba", 128, mma), ("numba", 48, matmuls), ("cudnn", 64, attention), ("cudnn", 48, attention),
     ("auto", 64, wgmma), ("auto", 80, attention), ("auto", 96, mma), ("auto", 128, attention)],
)  # fmt: skip
def test_each_choice(machine, choice, HS, expected):
    machine()
    package.choose_engine(choice)
    assert package.engine(BFLOAT16_BITS, HS) is expected
    assert package.attention_scratch_size(B, T, NH, HS, BFLOAT16_BITS) == max(
        expected.scratch_size(B, T, NH, HS), partials_size(3 * NH * HS)
    )


@pytest.mark.parametrize("elsewhere", [{"hopper": False}, {"installed": False}])
def test_auto_uses_cudnn_only_on_hopper_and_if_installed(machine, elsewhere):
    machine(**elsewhere)
    package.choose_engine("auto")
    assert all(package.engine(BFLOAT16_BITS, size) is mma for size in (80, 128))


@pytest.mark.parametrize("choice", package.CHOICES)
def test_fp32_never_uses_cudnn(machine, choice):
    machine()
    package.choose_engine(choice)
    assert all(package.engine(FLOAT32, size) is not attention for size in (64, 80))


def test_an_unusable_engine_cannot_be_chosen(machine):
    machine(installed=False)
    package.choose_engine("numba")
    with pytest.raises(UserError, match="attention by cuDNN: it is not installed"):
        package.choose_engine("cudnn")
    with pytest.raises(ValueError, match="one of auto, numba, cudnn, got 'flash'"):
        package.choose_engine("flash")
    assert package._choice == "numba"


def test_the_trainer_requires_cudnn_only_for_bf16(machine):
    machine(installed=False)
    settings = dataclasses.replace(SHARD_DEFAULTS, attention="cudnn")
    preparation.choose_attention(dataclasses.replace(settings, precision="fp32"))
    with pytest.raises(UserError, match="not installed"):
        preparation.choose_attention(dataclasses.replace(settings, precision="bf16"))
    machine(installed=True)
    preparation.choose_attention(dataclasses.replace(settings, precision="bf16"))
    assert package.engine(BFLOAT16_BITS, HS) is attention


def test_the_command_line_fails_before_data_is_loaded(machine, monkeypatch, tmp_path, capsys):
    machine(installed=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preparation, "bfloat16_supported", lambda: True)
    monkeypatch.setattr(preparation, "make_loaders", lambda *_: pytest.fail("the trainer continued"))
    assert train.main(["--device", "gpu", "--precision", "bf16", "--attention", "cudnn"]) == 2
    assert "attention by cuDNN: it is not installed. Choose another attention (--attention numba)" in capsys.readouterr().err


def test_engine_names(machine):
    machine()
    device = to_device(np.zeros(8, np.uint16))
    assert package.engine_name(device, 80) == "cudnn"
    package.choose_engine("numba")
    assert package.engine_name(device, 80) == "mma"


@pytest.mark.parametrize("B, T, NH, measured", [(16, 1024, 25, 801.562744140625), (64, 1024, 12, 1539.000244140625)])
def test_scratch_size_agrees_with_measured_workspaces(B, T, NH, measured):
    """measured: MiB of workspace that cuDNN 9.19 requested on one H200, HS=64."""
    nbytes = 4 * attention.scratch_size(B, T, NH, 64)
    assert 0 <= nbytes - measured * 2**20 <= attention.OVERHEAD_BYTES
    assert 0 <= 4 * attention.scratch_size(1, 130, 2, 128) - 197904 <= 2 * attention.OVERHEAD_BYTES
    assert attention.scratch_size(B, 77, NH, 64) == attention.scratch_size(B, 128, NH, 64)
    lengths = [attention.scratch_size(B, length, NH, 64) for length in range(1, T + 1)]
    assert lengths == sorted(lengths), "shorter sequences and smaller batches fit into the same memory"


# ----------------------------------------------------------------------------------------------- what cuDNN gets


class FakeTensor:
    def __init__(self, name="", dim=None, stride=None, data_type="as the graph"):
        self.name, self.dim, self.stride, self.data_type, self.is_output = name, dim, stride, data_type, False

    def set_output(self, is_output):
        self.is_output = is_output
        return self

    def set_dim(self, dim):
        self.dim = dim
        return self

    def set_stride(self, stride):
        self.stride = stride
        return self

    def set_data_type(self, data_type):
        self.data_type = data_type
        return self


class FakeGraph:
    """Replaces cudnn.pygraph. `made` lists the graphs made by a test."""

    made = None

    def __init__(self, **options):
        self.options, self.operation, self.executed = options, None, []
        FakeGraph.made.append(self)

    def tensor(self, **description):
        return FakeTensor(**description)

    def sdpa(self, **arguments):
        self.operation = arguments
        self.results = [FakeTensor() for _ in ("out", "stats")]
        return self.results

    def sdpa_backward(self, **arguments):
        self.operation = arguments
        self.results = [FakeTensor() for _ in ("dQ", "dK", "dV")]
        return self.results

    def build(self, modes):
        self.modes = modes

    def get_workspace_size(self):
        return 256 if "generate_stats" in self.operation else WORKSPACE

    def execute(self, buffers, workspace, handle):
        self.executed.append((buffers, workspace, handle))


@pytest.fixture
def fake_cudnn(monkeypatch, empty_caches):
    """A fake package `cudnn`, and a handle."""
    package = SimpleNamespace(
        pygraph=FakeGraph,
        data_type=SimpleNamespace(BFLOAT16="bf16", FLOAT="f32"),
        heur_mode=SimpleNamespace(A="A"),
        diagonal_alignment=SimpleNamespace(TOP_LEFT="top left"),
        cudnnGraphNotSupportedError=NotImplementedError,
        backend_version_string=lambda: "9.19",
    )
    monkeypatch.setattr(attention, "_library", lambda: (package, 7))
    monkeypatch.setattr(FakeGraph, "made", [])


def seen(memory, first, view):
    """What cuDNN sees of a flat array, from element `first` on."""
    strides = [stride * memory.itemsize for stride in view["stride"]]
    return np.lib.stride_tricks.as_strided(memory[first:], view["dim"], strides)


def test_layouts_select_the_right_elements():
    rows = np.arange(N * 3 * C)
    qkv = rows.reshape(B, T, 3, NH, HS)
    for part in range(3):
        view = seen(rows, part * C, attention.head_layout(B, T, NH, HS, 3))
        np.testing.assert_array_equal(view, qkv[:, :, part].transpose(0, 2, 1, 3))
    view = seen(rows, 0, attention.head_layout(B, T, NH, HS, 1))
    np.testing.assert_array_equal(view, rows[: N * C].reshape(B, T, NH, HS).transpose(0, 2, 1, 3))
    view = seen(rows, 0, attention.stats_layout(B, T, NH))
    np.testing.assert_array_equal(view[..., 0], rows[: B * NH * T].reshape(B, NH, T))


def check_causal_and_scaled(operation):
    assert operation["attn_scale"] == pytest.approx(1 / np.sqrt(HS))
    assert (operation["diagonal_alignment"], operation["diagonal_band_right_bound"]) == ("top left", 0)


def test_forward_graph(fake_cudnn):
    plan = attention._plan(attention.describe_forward, B, T, NH, HS)
    graph = plan.graph
    assert graph.options == {"handle": 7, "io_data_type": "bf16", "intermediate_data_type": "f32", "compute_data_type": "f32"}
    check_causal_and_scaled(graph.operation)
    assert graph.operation["generate_stats"] is True
    packed, unpacked = attention.head_layout(B, T, NH, HS, 3), attention.head_layout(B, T, NH, HS, 1)
    for name in ("q", "k", "v"):
        tensor = plan.tensors[name]
        assert graph.operation[name] is tensor and {"dim": tensor.dim, "stride": tensor.stride} == packed
    out, lse = graph.results
    assert plan.tensors["out"] is out and plan.tensors["lse"] is lse
    assert out.is_output and {"dim": out.dim, "stride": out.stride} == unpacked
    assert lse.is_output and lse.data_type == "f32" and lse.dim == (B, NH, T, 1)


def test_backward_graph(fake_cudnn):
    plan = attention._plan(attention.describe_backward, B, T, NH, HS)
    operation, tensors = plan.graph.operation, plan.tensors
    check_causal_and_scaled(operation)
    assert operation["use_deterministic_algorithm"] is True
    for argument, name in {"q": "q", "k": "k", "v": "v", "o": "out", "dO": "dout", "stats": "lse"}.items():
        assert operation[argument] is tensors[name]
    for gradient, name in zip(plan.graph.results, ("dq", "dk", "dv")):
        assert tensors[name] is gradient
    packed, unpacked = attention.head_layout(B, T, NH, HS, 3), attention.head_layout(B, T, NH, HS, 1)
    for name, tensor in tensors.items():
        if name != "lse":
            assert {"dim": tensor.dim, "stride": tensor.stride} == (unpacked if "out" in name else packed), name
        assert tensor.is_output == (name in ("dq", "dk", "dv")), name
    assert tensors["lse"].data_type == "f32" and tensors["lse"].dim == (B, NH, T, 1)


def host_arrays(scratch_bytes):
    arrays = {name: np.zeros((N, columns), np.uint16) for name, columns in (("qkv", 3 * C), ("dqkv", 3 * C), ("out", C), ("dout", C))}
    return arrays | {"lse": np.zeros((B, NH, T), np.float32), "scratch": np.zeros(scratch_bytes // 4, np.float32)}


def call_both(a):
    attention.attention_forward(a["out"], a["lse"], a["qkv"], a["scratch"])
    attention.attention_backward(a["dqkv"], a["dout"], a["out"], a["lse"], a["qkv"], a["scratch"])


def test_every_tensor_gets_its_address(monkeypatch, fake_cudnn):
    arrays = host_arrays(WORKSPACE)
    address = {name: 1000 * (1 + i) for i, name in enumerate(arrays)}
    address_by_id = {id(array): address[name] for name, array in arrays.items()}
    monkeypatch.setattr(attention, "device_pointer", lambda array: address_by_id[id(array)])

    def three(names, first):
        return {name: first + part * C * 2 for part, name in enumerate(names)}

    for _ in range(2):
        call_both(arrays)
    assert len(FakeGraph.made) == 2, "a plan is made once per shape"
    forward, backward = (attention._plan(describe, B, T, NH, HS) for describe in (attention.describe_forward, attention.describe_backward))
    common = {**three("qkv", address["qkv"]), "out": address["out"], "lse": address["lse"]}
    for plan, expected in (
        (forward, common),
        (backward, {**common, "dout": address["dout"], **three(("dq", "dk", "dv"), address["dqkv"])}),
    ):
        assert len(plan.graph.executed) == 2
        buffers, workspace, handle = plan.graph.executed[0]
        assert {name: buffers[tensor] for name, tensor in plan.tensors.items()} == expected
        assert (workspace, handle) == (address["scratch"], 7)


def test_a_workspace_larger_than_the_formula_is_refused(monkeypatch, fake_cudnn):
    monkeypatch.setattr(attention, "device_pointer", id)
    with pytest.raises(UserError, match=r"cuDNN 9\.19 needs 4,096 bytes of workspace.* at most 4,092 were expected.*--attention numba"):
        call_both(host_arrays(WORKSPACE - 4))
    assert [graph.executed != [] for graph in FakeGraph.made] == [True, False]


def test_unsupported_shapes_are_reported(monkeypatch, fake_cudnn):
    def build(graph, modes):
        raise NotImplementedError("hidden_dim should be multiple of 8")

    monkeypatch.setattr(FakeGraph, "build", build)
    with pytest.raises(UserError, match="no attention for B=2, T=5, NH=3, HS=7.*multiple of 8"):
        attention._plan(attention.describe_forward, B, T, NH, 7)


# ------------------------------------------------------------------------------------------------------ on a GPU


def exact_attention(qkv, dout, sizes):
    """out, lse and dqkv in float64, from the definition."""
    B, T, NH, HS = sizes
    q, k, v = qkv.astype(np.float64).reshape(B, T, 3, NH, HS).transpose(2, 0, 3, 1, 4)
    dout = dout.astype(np.float64).reshape(B, T, NH, HS).transpose(0, 2, 1, 3)
    scores = np.where(np.tri(T, dtype=bool), q @ k.swapaxes(2, 3) / np.sqrt(HS), -np.inf)
    lse = np.logaddexp.reduce(scores, axis=3)
    att = np.exp(scores - lse[..., None])
    datt = dout @ v.swapaxes(2, 3)
    dscores = att * (datt - np.sum(att * datt, axis=3, keepdims=True)) / np.sqrt(HS)
    gradients = np.stack([dscores @ k, dscores.swapaxes(2, 3) @ q, att.swapaxes(2, 3) @ dout])
    out = (att @ v).transpose(0, 2, 1, 3).reshape(B * T, -1)
    return out, lse, gradients.transpose(1, 3, 0, 2, 4).reshape(B * T, -1)


@needs_cudnn
@pytest.mark.parametrize("sizes", [(2, 77, 3, 64), (1, 130, 2, 128)])
def test_cudnn_agrees_with_the_definition_and_repeats_its_bits(sizes):
    B, T, NH, HS = sizes
    rng = np.random.default_rng(5)
    qkv, dout = (bfloat16_values(bfloat16_bits(rng.normal(size=(B * T, parts * NH * HS)))) for parts in (3, 1))
    device_qkv, device_dout = (to_device(values, BFLOAT16_BITS) for values in (qkv, dout))
    out, dqkv = (to_device(np.full(values.shape, np.nan, np.float32), BFLOAT16_BITS) for values in (dout, qkv))
    lse = to_device(np.full((B, NH, T), np.nan, np.float32), FLOAT32)

    scratch = to_device(np.full(attention.scratch_size(*sizes), np.nan, np.float32))

    def both():
        attention.attention_forward(out, lse, device_qkv, scratch)
        attention.attention_backward(dqkv, device_dout, out, lse, device_qkv, scratch)

    graphs, results = Graphs(enabled=True), []
    for _ in range(3):  # launched directly, recorded, replayed
        graphs.run("attention", both)
        results.append([copy_to_host(array) for array in (out, lse, dqkv)])
    # att and dscores are rounded to bfloat16 (2^-9) before products, results once more. In a norm, errors of random sign mostly cancel.
    bounds = (2.0**-7, 2.0**-16, 2.0**-7)
    for name, got, exact, bound in zip(("out", "lse", "dqkv"), results[0], exact_attention(qkv, dout, sizes), bounds):
        difference = np.linalg.norm(got - exact) / np.linalg.norm(exact)
        assert difference < bound, f"{name}: relative difference {difference:.2e}, bound {bound:.2e}"
    for repeated in results[1:]:
        for first, again in zip(results[0], repeated):
            np.testing.assert_array_equal(first.view(np.uint32), again.view(np.uint32))
