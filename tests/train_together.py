"""A short training run by several processes, for tests: mpirun -np 4 python tests/train_together.py OPTIONS RESULT.npz

OPTIONS is JSON: sizes, B, T, accumulate, steps, zero_stage, device, precision, max_norm, graph, learning_rate. Each process takes its part
of the same batches. After each step the parameters of all processes must have the same bits. Rank 0 writes the losses, the norms, the sums
of the gradients' absolute values, and the final parameters.
"""

import hashlib
import json
import sys
from dataclasses import replace

import numpy as np

from gpt2_numba.config import parameter_shapes, parse_descriptor
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.initial_weights import initial_weights
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options
from gpt2_numba.parallel.start import join
from gpt2_numba.training.settings import SHARD_DEFAULTS, storage_precision

WEIGHT_DECAY = 0.1


def main(options, result):
    config, device = parse_descriptor(options["sizes"]), options["device"]
    group = join(replace(SHARD_DEFAULTS, hang_timeout=60), device)
    B, T, accumulate = options["B"], options["T"], options["accumulate"]
    model = GPT2(
        config, B, T,
        Options(
            device, storage_precision(options["precision"]), recompute=0, graph=options["graph"], zero_stage=options["zero_stage"],
            float8=options["precision"] == "fp8",
        ), group,
    )  # fmt: skip
    model.load_params(initial_weights(config, parameter_shapes(config)))
    tokens = np.random.default_rng(5).integers(0, config.V, 2**16).astype(np.uint16)
    loader = DataLoader([tokens], B, T, group.rank, group.ranks)
    measured = {"losses": [], "norms": [], "gradient_sizes": []}
    for step in range(options["steps"]):
        model.zero_grad()
        for micro_step in range(accumulate):
            inputs, targets = loader.next_batch()
            model.forward(inputs)
            model.backward(targets, accumulate, last=micro_step + 1 == accumulate)
        loss, norm, _ = model.measure(options["max_norm"]).wait()
        measured["losses"].append(loss)
        measured["norms"].append(norm)
        if options["zero_stage"] == 0:
            measured["gradient_sizes"].append(sum(np.abs(gradient).sum() for gradient in model.grads_to_host().values()))
        model.update(step, options["learning_rate"], WEIGHT_DECAY, rounding_seed=1000 + step)
        params = model.params_to_host()
        digests = group.gather(hashlib.sha256(b"".join(values.tobytes() for values in params.values())).hexdigest())
        if len(set(digests)) != 1:
            raise SystemExit(f"after step {step} the processes have different parameters: {digests}")
    if group.rank == 0:
        np.savez(result, **measured, **{f"param_{name}": values for name, values in params.items()})
    group.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
