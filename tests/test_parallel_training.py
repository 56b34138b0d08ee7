"""Several processes train as one: the same losses however the batch is divided, and the same bits in every process after every step.

Real processes, started by mpirun, each running tests/train_together.py: on the CPU, in the simulator, and on GPUs if there are two.
"""

import functools
import itertools
import json

import numpy as np
import pytest

from gpt2_numba.gpu.backend import SIMULATING, float8_supported
from gpt2_numba.gpu.detect_gpu import count_gpus
from tests.mpi import run_together

needs_two_gpus = pytest.mark.skipif(count_gpus() < 2, reason="needs two GPUs")

UNIT = 2.0**-24  # unit roundoff of float32
SIZES = "L=5,NH=2,C=16,T=8,V=61"  # 5 layers reuse the buffers of stage 2; with 3 processes parts are uneven: 16 elements are two times 8
STEPS = 4
LEARNING_RATE = 2e-3
RUN_NUMBER = itertools.count()


@functools.cache
def train(directory, processes, zero_stage, accumulate=1, run=1, **changes):
    """The results of tests/train_together.py: name -> array. With another `run` the same options are run again."""
    options = {
        "sizes": SIZES, "B": 1, "T": 8, "accumulate": accumulate, "steps": STEPS, "zero_stage": zero_stage, "device": "cpu", "precision":
        "fp32", "max_norm": 1.0, "graph": True, "learning_rate": LEARNING_RATE, **changes,
    }  # fmt: skip
    result = directory / f"{next(RUN_NUMBER)}.npz"
    run_together(processes, "tests/train_together.py", json.dumps(options), result, timeout=300)
    return dict(np.load(result))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def assert_same_parameters(one, *others):
    for name in one:
        if name.startswith("param_"):
            for other in others:
                np.testing.assert_array_equal(other[name], one[name], err_msg=name)


def assert_same_bits(one, other):
    for name in one:
        if name != "gradient_sizes":
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("processes, accumulate", [(2, 2), (4, 1)])
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_losses_do_not_depend_on_how_the_batch_is_divided(processes, accumulate, zero_stage, directory):
    """4 rows per step: by one process in 4 micro-steps, by 2 in 2, by 4 in one. Only the order of the sums differs.

    The bound: a loss is a mean of 32, each with a handful of roundings: 16 units of it. A gradient is a sum whose error is a few units of
    the sum of its terms' absolute values, which cancellation makes larger than the sum: say 32 units of |g| in all. AdamW steps by about
    learning rate * g / |g|, so an error d of g moves a parameter by learning rate * d / |g|, and the loss by at most learning rate * d:
    with d = 32 UNIT |g|, summed over all parameters and steps.
    """
    alone = train(directory, 1, 0, 4)
    together = train(directory, processes, zero_stage, accumulate)
    moved = np.cumsum(np.concatenate([[0.0], alone["gradient_sizes"][:-1]])) * LEARNING_RATE * 32 * UNIT
    bound = 16 * UNIT * alone["losses"] + moved
    difference = np.abs(together["losses"] - alone["losses"])
    assert (difference <= bound).all(), f"{difference} is more than {bound}"
    assert (np.abs(together["norms"] - alone["norms"]) <= 1e-4 * alone["norms"]).all()


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_zero_changes_no_bit(processes, directory):
    """On the host, sums are made in rank order at every stage. 3 processes have uneven parts."""
    assert_same_parameters(*(train(directory, processes, stage, max_norm=1e9) for stage in (0, 1, 2)))


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_clipping_needs_the_norm_of_all_parts(zero_stage, directory):
    """The norm is summed in other parts, so the last bit of the clipping factor may differ, and with it that of everything."""
    stage0, sharded = (train(directory, 3, stage, 2, max_norm=0.1) for stage in (0, zero_stage))
    assert (stage0["norms"] > 0.1).all()
    np.testing.assert_allclose(sharded["norms"], stage0["norms"], rtol=1e-6)
    np.testing.assert_allclose(sharded["losses"], stage0["losses"], rtol=1e-6)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_the_same_run_gives_the_same_bits(zero_stage, directory):
    first, second = (train(directory, 3, zero_stage, 2, run=run) for run in (1, 2))
    assert_same_bits(first, second)


@pytest.mark.skipif(not SIMULATING, reason="the kernels run on the GPU: see the tests on two GPUs")
@pytest.mark.parametrize("precision, sizes, T", [("bf16", "L=2,NH=1,C=8,T=8,V=9", 8), ("fp8", "L=1,NH=1,C=16,T=16,V=9", 16)])
def test_the_kernels(precision, sizes, T, directory):
    """The GPU's code path, in the simulator: master weights, stochastic rounding, ZeRO's ranges. The order of two terms does not matter."""
    tiny = dict(sizes=sizes, T=T, device="gpu", precision=precision, max_norm=1e9, steps=2)
    stage0, stage1, stage2 = (train(directory, 2, stage, **tiny) for stage in (0, 1, 2))
    assert_same_parameters(stage0, stage1, stage2)
    alone = train(directory, 1, 0, 2, **tiny)
    np.testing.assert_allclose(stage0["losses"], alone["losses"], rtol=2.0**-8)


# ------------------------------------------------------------------------------------------------------------- two GPUs

ON_GPUS = dict(sizes="L=5,NH=4,C=256,T=256,V=5003", B=4, T=256, device="gpu", precision="bf16", steps=6, learning_rate=2e-4)


@needs_two_gpus
@pytest.mark.parametrize("accumulate, precision", [(1, "bf16"), (3, "bf16"), (1, "fp8")])
def test_gpus_with_and_without_zero(accumulate, precision, directory):
    """Two terms have the same sum in either order, so ZeRO changes no bit, unless stage 2 sums over processes before micro-steps."""
    if precision == "fp8" and not float8_supported():
        pytest.skip("needs GPUs with fp8")
    options = ON_GPUS | {"precision": precision}
    stage0, stage1, stage2 = (train(directory, 2, stage, accumulate, max_norm=1e9, **options) for stage in (0, 1, 2))
    assert_same_parameters(stage0, stage1, *([stage2] if accumulate == 1 else []))
    np.testing.assert_allclose(stage2["losses"], stage0["losses"], rtol=2.0**-9)
    # In bfloat16 the order of a sum may change the sign of a gradient near zero, and AdamW's first steps go by the sign.
    alone = train(directory, 1, 0, 2 * accumulate, max_norm=1e9, **options)
    np.testing.assert_allclose(stage0["losses"], alone["losses"], rtol=2.0**-8)


@needs_two_gpus
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_gpus_with_and_without_graphs(zero_stage, directory):
    replayed, again = (train(directory, 2, zero_stage, 2, run=run, **ON_GPUS) for run in (1, 2))
    launched = train(directory, 2, zero_stage, 2, **ON_GPUS, graph=False)
    assert_same_bits(replayed, again)
    assert_same_bits(replayed, launched)


@needs_two_gpus
def test_gpus_with_uneven_parts(directory):
    """C = 24 is three times 8: one of two ranks gets 16 of 24 elements, the other 8."""
    uneven = {**ON_GPUS, "sizes": "L=2,NH=3,C=24,T=64,V=101", "T": 64}
    stage0, stage1, stage2 = (train(directory, 2, stage, max_norm=1e9, **uneven) for stage in (0, 1, 2))
    assert_same_parameters(stage0, stage1, stage2)


@pytest.mark.skipif(count_gpus() < 4, reason="needs four GPUs")
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_four_gpus(zero_stage, directory):
    """NCCL may add four terms in another order at another stage, but always in the same order at the same stage."""
    first, second = (train(directory, 4, zero_stage, 1, run=run, **ON_GPUS) for run in (1, 2))
    assert_same_bits(first, second)
    alone = train(directory, 1, 0, 4, **ON_GPUS)
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=2.0**-8)
