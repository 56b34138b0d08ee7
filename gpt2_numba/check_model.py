"""Is the whole model correct?  python -m gpt2_numba.check_model MODEL.bin DEBUG_STATE.bin [--losses FILE]

A debug state holds one batch, and the logits, the loss and the gradients of the 16 tensors that another implementation (PyTorch) computed
for it from the parameters in the model file. This program computes them too and prints a table of the differences. It then trains for ten
steps on the same batch (clipping at norm 1.0, AdamW with learning rate 1e-4) and compares the losses with the ten in FILE, if it is given;
the debug state has only the first one. Finally it checks that a run is reproducible to the bit: ten steps on shuffled data, repeated from a
checkpoint, must give the same losses, parameters and averages.

`python -m dev.data.make_debug_state` makes all three files for any model; llm.c's own debug states can be read too.
Exit code: 0 all is well, 1 something differs, 2 a mistake of the user's, reported in one line.
"""

import math
import tempfile
from pathlib import Path

import numpy as np

from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.config import parameter_shapes
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import bfloat16_supported, device_name, on_host, real_gpu
from gpt2_numba.layer_checks import UNIT, compare
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options
from gpt2_numba.training.debug_state_file import read_debug_state
from gpt2_numba.training.model_file import read_model_file
from gpt2_numba.training.resume import RunState, open_newest, restore, save

STEPS = 10
ADAMW = dict(learning_rate=1e-4, weight_decay=0.0, beta1=0.9, beta2=0.95, eps=1e-8)
GRAD_CLIP = 1.0

# ------------------------------------------------------------------------------------------------------------- bounds

UNIT_BF16 = 2.0**-8  # largest relative error of one rounding to bfloat16
UNIT_TF32 = 2.0**-10  # TF32 has ten fraction bits, and a tensor core may truncate instead of rounding

# Tensors on the longest path through the model that are rounded when they are stored.
STORED_FORWARD = 12 + 9  # encoded, ln1, qkv, att, atty, branch, ln2, fch, fch_gelu, branch, lnf, logits; nine parameter tensors
STORED_BACKWARD = 12  # dlogits, dlnf, dfch twice, dln2, datty, datt, dscore, dheads, dqkv, dln1, the parameter's own gradient
PRODUCTS_FORWARD = 7  # qkv, scores, att, attproj, fc, fcproj, logits
PRODUCTS_BACKWARD = 8  # for the inputs of logits, fcproj, fc, attproj, att, scores and qkv, and one for a weight


def relative_error(config, B, T, precision, tf32, backward):
    """Bound for the error of the logits, or of the gradients (`backward`), relative to the largest element of each tensor.

    There are three kinds of rounding errors, practically independent, so the bound is the root of the sum of their squares:
      in sums      In float32, with fp32 as with bf16. The error of an element grows with the root of the number of additions behind it: C
                   or 4C in a product with weights and C in a LayerNorm, HS and T in attention, V in the softmax and in what follows it,
                   N = B * T in the gradient of a weight.
      in storage   The tensors listed above, in float32 or bfloat16.
      in products  Both factors of each product, in TF32 if allowed.
    They count for a single block, whatever the number of blocks: the residual stream is the sum of the blocks' branches, all of about the
    same size, so an error in one of them counts only for its share. The stream itself is rounded again by each of the two additions in
    every block.
    Other implementations in float32 have errors of sums too. The bound covers them if they are of the same size: sums are computed in
    parts, with fewer additions per element than counted here, and a rounding error is less than a unit, 0.3 on average.
    At least a dozen tokens are needed: with fewer, a difference such as datt - Σ p datt in attention can be far smaller than its terms.
    """
    C, HS, N = config.C, config.HS, B * T
    additions = 11 * C + HS + 2 * T
    stored, products = STORED_FORWARD + 2 * config.L, PRODUCTS_FORWARD
    if backward:
        additions += 12 * C + HS + 2 * T + config.V + N
        stored, products = stored + STORED_BACKWARD + 2 * config.L, products + PRODUCTS_BACKWARD
    squares = additions * UNIT**2
    squares += stored * (UNIT_BF16 if precision == "bf16" else UNIT) ** 2
    if precision == "fp32" and tf32:
        squares += 2 * products * UNIT_TF32**2
    return math.sqrt(squares)


def gradient_scale(name, gradients, config, T):
    """The scale for the errors of gradients[name], broadcastable to its shape: the largest magnitude in each group of elements.

    Each block is a group. Within it values are separate from queries and keys, whose gradients can be far smaller. Queries and keys form
    one group, and biases are in one with their weights: a bias is the weight of an input of 1, and the other inputs come from a LayerNorm,
    so they are about 1 too. On its own a bias can have a gradient of nothing but rounding errors. That of the keys always has: adding the
    same value to all scores of a row does not change the softmax.
    The scale is 0 for elements without tokens, in the padding of wte and in wpe beyond T: these gradients must be exactly zero.
    """
    magnitudes = np.abs(gradients[name])
    if name in ("wte", "wpe", "lnfw", "lnfb"):
        largest = np.full(magnitudes.shape, magnitudes.max())
        largest[{"wte": config.V, "wpe": T}.get(name, len(largest)) :] = 0
    elif name in ("qkvw", "qkvb"):
        row_max = np.maximum(np.abs(gradients["qkvw"]).max(axis=2), np.abs(gradients["qkvb"]))
        queries_keys, values = row_max[:, : 2 * config.C].max(axis=1), row_max[:, 2 * config.C :].max(axis=1)
        largest = np.repeat(np.stack((queries_keys, values), axis=1), (2 * config.C, config.C), axis=1)
        largest = largest.reshape(*largest.shape, *(1,) * (magnitudes.ndim - 2))
    else:
        largest = magnitudes.max(axis=tuple(range(1, magnitudes.ndim)), keepdims=True)
    return np.where(np.isfinite(largest), largest, 0)  # an infinite value in the file must not allow any error


def loss_bounds(config, state, expected, precision, tf32):
    """Bounds for the errors of the losses of the first steps, an array like `expected`, which has that many losses (nats per token).

    The loss's own arithmetic, float32 in every precision and in both programs: eight roundings for logarithm, differences and mean.
    The errors of the logits: an error in a logit changes a token's loss by at most as much, and the mean is over as many independent errors
    as there are different targets; errors are relative to a logit's typical magnitude. This term is doubled after the first step, when
    bfloat16 parameters have been rounded stochastically, which is off by up to twice as much as rounding to nearest.
    The errors of the steps: the decrease of the loss has the relative error of the gradients. AdamW divides each gradient by its magnitude,
    so small ones with large relative errors weigh as much as the others, but these errors are independent, at least between channels.
    """
    typical_logit = math.sqrt(float(np.mean(np.square(state.logits, dtype=np.float64))))
    forward = relative_error(config, *state.inputs.shape, precision, tf32, backward=False)
    backward = relative_error(config, *state.inputs.shape, precision, tf32, backward=True)
    logits_error = forward * typical_logit / math.sqrt(len(np.unique(state.targets)))
    steps = np.arange(len(expected))
    return 8 * UNIT * expected + logits_error * (1 + (steps > 0)) + backward / math.sqrt(config.C) * np.abs(expected - expected[0])


# -------------------------------------------------------------------------------------------------------- comparisons


def train_step(model, step, inputs, targets, run_state):
    """One step of the training that is compared. Returns its loss and gradient norm."""
    model.zero_grad()
    model.forward(inputs)
    model.backward(targets)
    loss, norm, _ = model.measure(GRAD_CLIP).wait()
    model.update(step, rounding_seed=run_state.next_rounding_seed(), **ADAMW)
    return loss, norm


def compare_first_step(model, state, tf32):
    """Compare logits, loss and the 16 gradient tensors. Returns pairs of a Row (layer_checks) and the tensor's largest magnitude."""
    config, (B, T) = model.config, state.inputs.shape
    forward, backward = (relative_error(config, B, T, model.options.precision, tf32, backward=which) for which in (False, True))
    model.zero_grad()
    model.forward(state.inputs)
    logits = model.logits_to_host()
    model.backward(state.targets)
    loss = np.array([state.loss])
    largest_logit = np.abs(state.logits).max()
    logits_bound = forward * largest_logit if np.isfinite(largest_logit) else 0.0
    loss_bound = loss_bounds(config, state, expected=loss, precision=model.options.precision, tf32=tf32)
    rows = [
        (compare("forward", "logits", got=logits, expected=state.logits, error_bound=logits_bound), largest_logit),
        (compare("forward", "loss", got=np.array([model.take_loss()]), expected=loss, error_bound=loss_bound), state.loss),
    ]
    for name, gradient in model.grads_to_host().items():
        expected = state.gradients[name]
        bound = backward * gradient_scale(name, state.gradients, config, T)
        rows.append((compare("backward", f"d{name}", got=gradient, expected=expected, error_bound=bound), np.abs(expected).max()))
    return rows


def compare_losses(model, state, expected, tf32):
    """Train ten steps on the state's batch. Returns (losses, Rows: one for each expected loss)."""
    run_state = RunState()
    losses = [train_step(model, step, state.inputs, state.targets, run_state)[0] for step in range(STEPS)]
    bounds = loss_bounds(model.config, state, expected, precision=model.options.precision, tf32=tf32)
    rows = [
        compare(f"step {step}", "loss", got=np.array([loss]), expected=np.array([wanted]), error_bound=np.array([bound]))
        for step, (loss, wanted, bound) in enumerate(zip(losses, expected, bounds))
    ]
    return losses, rows


def check_determinism(model, directory, first_step=STEPS):
    """Do ten steps on shuffled data, twice from the same state; the second time it is read from a checkpoint in `directory`.

    Returns the differences as lines of text. The tokens are random and few, so that the ten steps cover several epochs.
    """
    config, B, T = model.config, model.B, model.T
    tokens = np.random.default_rng(0).integers(0, config.V, 4 * B * T + 1).astype(np.uint16)
    loader, run_state = DataLoader([tokens], B, T, shuffle=True, vocab_size=config.V), RunState()
    run_state.next_rounding_seed()  # not the initial state, which a program that forgets to restore it would have
    loader.next_batch()

    def ten_steps():
        batches, losses = [], []
        for step in range(first_step, first_step + STEPS):
            inputs, targets = loader.next_batch()
            losses.append(train_step(model, step, inputs, targets, run_state))
            batches.append(inputs)
        return {"tokens": np.array(batches), "losses and norms": np.array(losses)} | copy_state(model)

    save(directory, first_step, model, loader.state(), run_state)
    first = ten_steps()
    restore(open_newest(directory), model, loader, run_state)
    second = ten_steps()
    return [line for name in first for line in difference(name, first[name], second[name])]


def copy_state(model):
    """Parameters and AdamW's state, name -> flat host array, an exact copy."""
    model.synchronize()
    arrays = {name: model.raw(name) for name in ("params", "m", "v", "master")}
    return {
        name: array.copy() if on_host(array) else array.copy_to_host()
        for name, array in arrays.items() if array is not None
    }  # fmt: skip


def difference(name, first, second):
    """A list with one line of text if the bits of the arrays differ, else an empty list."""
    as_bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[first.itemsize]
    differ = first.view(as_bits) != second.view(as_bits)
    if not differ.any():
        return []
    at = tuple(int(i) for i in np.unravel_index(np.argmax(differ), differ.shape))
    count = np.count_nonzero(differ)
    return [f"{name}: {count} of {differ.size} differ, the first at {at}: {first[at]!r}, after reloading {second[at]!r}"]


# ------------------------------------------------------------------------------------------------------------- tables


def print_rows(rows):
    """Print the table of the first step: pairs of a Row and the tensor's largest magnitude. Errors are absolute, and relative to that."""
    print(f"{'tensor':<10}{'shape':<18}{'largest':>10}{'error':>11}{'relative':>11}{'bound':>11}  {'':<8}at")
    for row, largest in rows:
        shape = "x".join(map(str, row.shape))
        relative = row.error / largest if 0 < largest < math.inf else math.inf
        verdict = "ok" if row.ok else "FAILED"
        print(f"{row.tensor:<10}{shape:<18}{largest:10.2e}{row.error:11.2e}{relative:11.2e}{row.bound:11.2e}  {verdict:<8}{row.index}")


def print_losses(losses, rows):
    """Print all losses, and the errors of those with an expected value."""
    print(f"{'step':<6}{'loss':>13}{'expected':>13}{'error':>11}{'bound':>11}")
    for step, loss in enumerate(losses):
        row = rows[step] if step < len(rows) else None
        rest = f"{row.expected:13.7f}{row.error:11.2e}{row.bound:11.2e}  {'ok' if row.ok else 'FAILED'}" if row else ""
        print(f"{step:<6}{loss:13.7f}{rest}")


# ------------------------------------------------------------------------------------------------------- command line


def parse_arguments(argv):
    """Parse the command line and decide the device. Raises UserError for a mistake."""
    description = "Compare the model with a debug state, and check that a run is reproducible."
    parser = Parser(prog="python -m gpt2_numba.check_model", description=description, allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL.bin", help="model file, float32 or bfloat16")
    parser.add_argument("state", metavar="DEBUG_STATE.bin", help="debug state of that model")
    parser.add_argument(
        "--losses", metavar="FILE", help=f"text file with the {STEPS} expected losses (default: only the first one is compared)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="default: the GPU if there is one")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default: fp32")
    parser.add_argument("--tf32", choices=("0", "1"), default="0", help="allow TF32 in fp32 matmuls on a GPU (default: 0)")
    arguments = parser.parse_args(argv)
    if arguments.device == "auto":
        arguments.device = "gpu" if real_gpu() else "cpu"
    arguments.tf32 = arguments.tf32 == "1" and arguments.device == "gpu"
    if arguments.precision == "bf16" and arguments.device == "gpu" and real_gpu() and not bfloat16_supported():
        raise UserError(f"bf16 needs a GPU of compute capability 8.0 or later, and {device_name()} has less: use --precision fp32")
    return arguments


def read_losses(path):
    """The expected losses in a text file, float64 (STEPS,). Raises UserError if it does not hold that many numbers."""
    try:
        words = Path(path).read_text().split()
        losses = np.array([float(word) for word in words])
    except OSError as error:
        raise UserError(f"{path}: the losses must be a readable file: {error.strerror}. Check the path") from error
    except ValueError as error:  # raised also by text that is not UTF-8
        raise UserError(f"{path}: the losses must be {STEPS} numbers in a text file: {error}") from error
    if len(losses) != STEPS or not np.isfinite(losses).all():
        raise UserError(
            f"{path}: the losses must be {STEPS} finite numbers, one for each step, this file has {len(losses)} "
            f"numbers, {np.count_nonzero(np.isfinite(losses))} of them finite"
        )
    return losses


def run(argv):
    """Run the whole check. Returns the exit code: 0, or 1 if something differs."""
    arguments = parse_arguments(argv)
    config, parameters = read_model_file(arguments.model)
    state = read_debug_state(arguments.state, config, parameter_shapes(config))
    expected = np.array([state.loss]) if arguments.losses is None else read_losses(arguments.losses)
    B, T = state.inputs.shape
    model = GPT2(config, B, T, Options(device=arguments.device, precision=arguments.precision, tf32=arguments.tf32))
    for name in ("params", "master"):
        if model.raw(name) is not None:
            model.load_part(name, 0, parameters)
    machine = device_name() if arguments.device == "gpu" else "CPU, by NumPy"
    tf32 = f", TF32 {'on' if arguments.tf32 else 'off'}" if arguments.precision == "fp32" and arguments.device == "gpu" else ""
    print(f"{config}, B={B}, T={T}, {arguments.precision}{tf32}, {machine}\n")

    rows = compare_first_step(model, state, arguments.tf32)
    print_rows(rows)
    losses, loss_rows = compare_losses(model, state, expected, arguments.tf32)
    print()
    print_losses(losses, loss_rows)
    failures = [str(row) for row in [*(row for row, _ in rows), *loss_rows] if not row.ok]

    with tempfile.TemporaryDirectory() as directory:
        differences = check_determinism(model, directory)
    print(f"\nten steps repeated from a checkpoint: {'FAILED' if differences else 'the same bits'}")
    failures += differences
    for failure in failures:
        print(f"FAILED {failure}")
    print("something differs" if failures else "all is well")
    return 1 if failures else 0


def main(argv):
    """Run the command line. Returns the exit code: 0, 1 if something differs, 2 for a mistake of the user's."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
