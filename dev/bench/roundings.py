"""The same training several times, which differ by nothing but roundings: how far apart do the losses come?

    python -m dev.bench.roundings --seeds 0,1,2,3 --json FILE -- FLAGS OF gpt2_numba.train

Seed 0 is the run as the trainer does it. With another seed, a run in bf16 draws other noise for its stochastic rounding; in fp32, where
nothing is rounded at random, each weight of the start is multiplied by 1 + u 2^-p, with u drawn evenly from -1 to 1 and p the bits of a
factor in a matrix product, 11 (TF32) or 24: an error of the size that every product makes in any case.

All runs happen in one process with one model, so a run costs its steps only. --seconds ends the series early: no further run begins if one
like the last would take too long. --encoder stochastic rounds the embeddings' gradients stochastically, as llm.c does, instead of to
nearest; it needs bf16. --rows-at-once adds up the gradients of a micro-batch in several parts; another -b would be other data.

Writes {"runs": {seed: {"losses", "norms", "seconds"}}} to FILE after each run.
"""

import contextlib
import json
import time
from unittest.mock import patch

import numpy as np
from numba import cuda, uint64

from gpt2_numba import fused_layer_order
from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.arena import zero
from gpt2_numba.gpu.backend import compute_stream, real_gpu, to_device
from gpt2_numba.gpu.memory_access import load1, store1
from gpt2_numba.gpu.stochastic_rounding import round_to_bfloat16_stochastically
from gpt2_numba.integers import ceil_div
from gpt2_numba.layers.fast.encoder import encoder_backward
from gpt2_numba.model import LOAD_PIECE
from gpt2_numba.parallel.group import Alone
from gpt2_numba.train import GRAD_CLIP
from gpt2_numba.training.preparation import choose_machine, prepare
from gpt2_numba.training.resume import RunState
from gpt2_numba.training.schedules import learning_rate
from gpt2_numba.training.settings import parse_settings

SCATTER = 0x9E3779B97F4A7C15  # 2^64 / the golden ratio: neighbouring seeds begin at distant states
THREADS = 256


class Series:
    """Runs of one training, from one start.

    flags         of gpt2_numba.train, as a list
    rows_at_once  rows of a forward pass, if fewer than a micro-batch has: the data stay the same, and gradients are sums of more parts
    """

    def __init__(self, flags, rows_at_once=None):
        self.run = prepare(choose_machine(parse_settings(flags)), Alone())
        self.rows = rows_at_once or self.run.settings.batch_size
        if self.run.settings.batch_size % self.rows:
            raise UserError(f"--rows-at-once must divide the rows of a micro-batch, {self.run.settings.batch_size}, got {self.rows}")
        self.model, self._position = self.run.model, self.run.train_loader.state()
        self.model.synchronize()
        # Exact: master weights start as copies of the parameters.
        self._start = np.ascontiguousarray(self.model.raw("params")).copy()

    def significant_bits(self):
        """Of the factors of matrix products in fp32."""
        return 11 if real_gpu() and self.model.options.device == "gpu" and self.model.options.tf32 else 24

    def train(self, seed):
        """Train from the start to the last step. Returns a dict of losses, norms (both step by step) and seconds."""
        begin = time.perf_counter()
        self._load(seed)
        state = RunState()
        state.rounding.state = (state.rounding.state + seed * SCATTER) % 2**64
        results, waiting = [], None
        for step in range(self.run.max_steps):
            measurement = self._step(step, state)
            if waiting:  # the GPU is busy with the next step
                results.append(waiting.wait())
            waiting = measurement
        losses, norms, _ = zip(*results, waiting.wait())
        return {"losses": list(losses), "norms": list(norms), "seconds": round(time.perf_counter() - begin, 2)}

    def _load(self, seed):
        model, nudge = self.model, seed and self.model.options.precision == "fp32"
        generator = np.random.default_rng(seed)
        for first in range(0, len(self._start), LOAD_PIECE):
            piece = self._start[first : first + LOAD_PIECE]
            piece = nudged(piece, generator, self.significant_bits()) if nudge else piece
            for name in ("params", "master"):
                if model.raw(name) is not None:
                    model.load_part(name, first, piece)
        for name in ("m", "v"):
            zero(model.raw(name))
        self.run.train_loader.load_state(self._position)

    def _step(self, step, state):
        """Queue one step, as in train.py. Returns its Measurement."""
        run, model, settings = self.run, self.model, self.run.settings
        model.zero_grad()
        for micro_step in range(run.grad_accum_steps):
            inputs, targets = run.train_loader.next_batch()
            parts = len(inputs) // self.rows
            for part in range(parts):
                rows = slice(part * self.rows, (part + 1) * self.rows)
                model.forward(inputs[rows])
                is_last = (micro_step + 1, part + 1) == (run.grad_accum_steps, parts)
                model.backward(targets[rows], run.grad_accum_steps * parts, last=is_last)
        rate = learning_rate(
            settings.schedule, step, run.max_steps,
            peak=settings.learning_rate, warmup_steps=settings.warmup_steps, final_fraction=settings.final_lr_fraction,
        )  # fmt: skip
        measurement = model.measure(GRAD_CLIP)
        model.update(step, rate, settings.weight_decay, rounding_seed=state.next_rounding_seed())
        return measurement


def nudged(weights, generator, bits):
    """weights (float32), each multiplied by 1 + u 2^-bits with u evenly from -1 to 1. Computed in float64, rounded to float32 once."""
    return (weights * (1 + 2.0**-bits * generator.uniform(-1, 1, len(weights)))).astype(np.float32)


# ------------------------------------------------------------------------------------- the embeddings' gradients, rounded at random


@cuda.jit
def add_stochastically_kernel(total, values, rounding_seed):
    """total += values, rounded stochastically. The noise is another one than that of the parameters, which has the same indices."""
    i = cuda.grid(1)
    if i < total.shape[0]:
        seed = (uint64(rounding_seed[0]) + uint64(0x9E3779B9)) & uint64(0xFFFFFFFF)
        store1(total, i, round_to_bfloat16_stochastically(load1(total, i) + load1(values, i), i, seed))


class StochasticEncoder:
    """encoder_backward, with gradients added up apart and then added to dwte and dwpe with stochastic rounding.

    rounding_seed (1,) uint32 on the device: that of the last update, so that a recorded step has new noise each time
    """

    def __init__(self, rounding_seed):
        self._rounding_seed, self._sums = rounding_seed, {}

    def __call__(self, dwte, dwpe, **others):
        sums = [self._zeros(name, array) for name, array in (("dwte", dwte), ("dwpe", dwpe))]
        encoder_backward(*sums, **others)
        for total, values in zip((dwte, dwpe), sums):
            grid = ceil_div(total.size, THREADS)
            flat = total.reshape((total.size,)), values.reshape((values.size,))
            add_stochastically_kernel[grid, THREADS, compute_stream()](*flat, self._rounding_seed)

    def _zeros(self, name, like):
        if name not in self._sums:  # in the first step, which is not recorded: nothing can be allocated while a step is
            self._sums[name] = to_device(np.zeros(like.shape, np.float32), like.dtype)
        zero(self._sums[name])
        return self._sums[name]


@contextlib.contextmanager
def chosen_encoder(name, model):
    """A `with` block in which the embeddings' gradients are rounded as `name` says: nearest or stochastic."""
    if name == "nearest":
        yield
        return
    if model.options.precision != "bf16" or not model.kernels.fused:
        raise UserError("--encoder stochastic rounds bfloat16 gradients: use --precision bf16 and the fast kernels")
    with patch.object(fused_layer_order, "encoder_backward", StochasticEncoder(model.memory["rounding_seed"])):
        yield


# -------------------------------------------------------------------------------------------------------------- command line


def measure(argv):
    """Measure as the command line says."""
    parser = Parser(prog="python -m dev.bench.roundings", doc=__doc__)
    parser.add_argument("--seeds", default="0,1,2,3", help="of the runs, in this order (default: %(default)s)")
    parser.add_argument("--encoder", choices=("nearest", "stochastic"), default="nearest", help="rounding of the embeddings' gradients")
    parser.add_argument("--rows-at-once", type=int, metavar="R", help="rows of a forward pass; the order of the data remains that of -b")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time for all runs and the start (default: no limit)")
    parser.add_argument("--fewest", type=int, default=1, help="runs that --seconds does not prevent (default: 1)")
    parser.add_argument("--json", type=user_path, required=True, help="file for the results")
    parser.add_argument("flags", nargs="+", help="flags of gpt2_numba.train, after --")
    arguments = parser.parse_args(argv)
    begin, runs, took = time.perf_counter(), {}, 0.0
    series = Series(arguments.flags, arguments.rows_at_once)
    with chosen_encoder(arguments.encoder, series.model):
        for seed in map(int, arguments.seeds.split(",")):
            if len(runs) >= arguments.fewest and time.perf_counter() - begin + took > arguments.seconds:
                print(f"no time for seed {seed} and later ones")
                break
            result = runs[str(seed)] = series.train(seed)
            took = result["seconds"]
            print(f"seed {seed}: loss {result['losses'][0]:.6f} to {result['losses'][-1]:.6f}, {took} s", flush=True)
            arguments.json.write_text(json.dumps({"flags": arguments.flags, "encoder": arguments.encoder, "runs": runs}) + "\n")


def main(argv):
    """The command line. Returns the exit code: 2 for a user's mistake, reported in one line."""
    return exit_code(measure, argv)


if __name__ == "__main__":
    main_program(main)
