"""Statistics of tensors and of a model's layers: kernel against reference against NumPy, and nothing of a training changes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2_numba import train as trainer
from gpt2_numba.config import GPT2Config, parameter_shapes
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.gpu.backend import BFLOAT16_BITS, SIMULATING, bfloat16_bits, copy_to_host, to_device
from gpt2_numba.gpu.race_detector import race_detector
from gpt2_numba.gpu.tensor_statistics import BLOCKS, combine, tensor_statistics
from gpt2_numba.initial_weights import initial_weights
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options
from gpt2_numba.parallel.shards import Sharing
from gpt2_numba.training.layer_statistics import LayerStatistics
from gpt2_numba.training.preparation import choose_machine
from gpt2_numba.training.settings import parse_settings
from tests.thread_group import in_threads

CONFIG = GPT2Config(L=3, NH=1, C=8, max_T=4, V=11)
INPUTS, TARGETS = np.array([[1, 2, 3, 4]], np.int32), np.array([[2, 3, 4, 5]], np.int32)


def some_values(count):
    values = np.random.default_rng(count).normal(size=count).astype(np.float32)
    values[::7] = 0
    if count > 4:
        values[[1, 3]] = np.nan, -np.inf
        values[2] = -9.5
    return values


def expected(values):
    finite = values[np.isfinite(values)].astype(np.float64)
    return [np.abs(finite).max(initial=0), np.square(finite).sum(), np.count_nonzero(finite == 0), values.size - finite.size]


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16_BITS], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 5, 64, 131, 1000])
def test_kernel_and_reference_find_the_same(count, dtype):
    """131 elements: neither a multiple of the threads nor enough for two rounds of all of them."""
    values = some_values(count)
    if dtype == BFLOAT16_BITS:
        bits = bfloat16_bits(values)
        values = np.array(bits.astype(np.uint32) << 16, np.uint32).view(np.float32)
    stored = bits if dtype == BFLOAT16_BITS else values
    on_host = np.full((BLOCKS, 4), np.nan)
    tensor_statistics(on_host, stored)
    on_device = to_device(np.full((BLOCKS, 4), np.nan, np.float32))
    tensor_statistics(on_device, to_device(stored))
    found = combine(copy_to_host(on_device))
    np.testing.assert_allclose(combine(on_host), expected(values), rtol=1e-14)
    largest, squares, zeros, not_finite = expected(values)
    assert (found[0], found[2], found[3]) == (largest, zeros, not_finite)
    assert abs(found[1] - squares) <= (count + 10) * 2.0**-24 * squares  # as many roundings, and the squares' own


@pytest.mark.skipif(not SIMULATING, reason="the race detector watches Numba's simulator")
def test_the_kernel_has_no_race():
    with race_detector():
        tensor_statistics(to_device(np.zeros((BLOCKS, 4), np.float32)), to_device(some_values(131)))


def model_after_backward(options):
    model = GPT2(CONFIG, B=1, T=4, options=options)
    model.load_params(initial_weights(CONFIG, parameter_shapes(CONFIG)))
    model.zero_grad()
    model.forward(INPUTS)
    model.backward(TARGETS)
    return model


@pytest.mark.parametrize("options", [Options(device="cpu"), Options(device="gpu", precision="fp32")], ids=["reference", "fast kernels"])
def test_every_layer_is_examined(options):
    model = model_after_backward(options)
    found = LayerStatistics(model).collect()
    gradients = model.grads_to_host()
    assert set(found["gradients"]) == set(gradients)
    assert {"encoded", "qkv", "residual3", "lnf"} < set(found["activations"]) and "logits" not in found["activations"]
    for name, tensor in gradients.items():
        layers = [tensor[: CONFIG.V] if name == "wte" else tensor] if name in ("wte", "wpe", "lnfw", "lnfb") else list(tensor)
        statistics = found["gradients"][name]
        np.testing.assert_allclose(statistics["largest"], [np.abs(layer).max() for layer in layers], rtol=1e-6)
        np.testing.assert_allclose(statistics["rms"], [math.sqrt(np.square(layer, dtype=np.float64).mean()) for layer in layers], rtol=1e-5)
        assert statistics["not_finite"] == [0] * len(layers)
    acts = model.activations(1, 4)
    residual = [np.abs(np.asarray(layer if isinstance(layer, np.ndarray) else copy_to_host(layer))).max() for layer in acts.residual3]
    np.testing.assert_allclose(found["activations"]["residual3"]["largest"], residual, rtol=1e-6)


def test_what_blocks_share_is_left_out():
    found = LayerStatistics(model_after_backward(Options(device="cpu", recompute=2))).collect()
    assert not {"ln1", "ln2", "fch_gelu"} & set(found["activations"]) and "fch" in found["activations"]


def test_values_that_are_not_finite_are_counted():
    model = model_after_backward(Options(device="cpu"))
    starts = {(part.name, part.layer): local for local, _, _, part in model.sharing.grads.parts()}
    model.load_part("grads", starts["fcb", 1], np.array([np.nan, np.inf, 0], np.float32))
    found = LayerStatistics(model).collect()["gradients"]["fcb"]
    assert found["not_finite"] == [0, 2 / 32, 0] and found["zeros"][1] >= 1 / 32 and math.isfinite(found["largest"][1])


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_several_processes_find_what_one_does(stage):
    """Each examines its part of the gradients: together they are the whole, each element once."""
    whole = model_after_backward(Options(device="cpu"))
    alone = LayerStatistics(whole).collect()
    flat, ranks = whole.raw("grads"), 3

    def part_of(group):
        sharing = Sharing(CONFIG, group.rank, ranks, stage)
        grads = np.full(sharing.grads.local_count(), np.nan, np.float32)
        for _, start, length, segment in sharing.counted.parts():  # the rest, which others have, must not be read
            at = sharing.grads.local_position(segment, start)
            grads[at : at + length] = flat[start : start + length]
        model = SimpleNamespace(
            raw=lambda name: grads, sharing=sharing, config=CONFIG, group=group, B=1, T=4, options=whole.options,
            activations=whole.activations,
        )  # fmt: skip
        return LayerStatistics(model).collect()

    for found in in_threads(ranks, part_of):
        for kind in alone:
            for name, statistics in alone[kind].items():
                for statistic, values in statistics.items():
                    np.testing.assert_allclose(found[kind][name][statistic], values, rtol=1e-12, err_msg=f"{kind} {name} {statistic}")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_no_bit_of_a_training_changes(tmp_path, device):
    write_shard(tmp_path / "train.bin", np.random.default_rng(5).integers(0, 11, 90))
    write_shard(tmp_path / "val.bin", np.arange(11))
    flags = f"-i {tmp_path}/train.bin -j {tmp_path}/val.bin -e L=1,NH=1,C=8,V=11 -b 1 -t 4 -d 8 -x 2 -v 0 -s 0 --device {device}".split()
    with_them, without = (
        trainer.train(choose_machine(parse_settings([*flags, "--stats-every", every, "-o", str(tmp_path / every)]))).raw("params")
        for every in ("1", "0")
    )
    host = [array if isinstance(array, np.ndarray) else copy_to_host(array) for array in (with_them, without)]
    assert host[0].tobytes() == host[1].tobytes()
    assert '"kind": "statistics", "step": 1' in (tmp_path / "1" / "run.jsonl").read_text()
    assert "statistics" not in (tmp_path / "0" / "run.jsonl").read_text()
