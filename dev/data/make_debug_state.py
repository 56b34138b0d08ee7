"""A model file, a debug state and ten losses by PyTorch, for comparison by `python -m gpt2_numba.check_model`.

    python -m dev.data.make_debug_state -e L=2,NH=2,C=32,T=16,V=101 -b 3 -t 13 --out data

writes

    data/model.bin              random initial weights, as at the start of training; float32
    data/model_debug_state.bin  a batch of random tokens, and PyTorch's logits, loss and gradients for it
    data/model_losses.txt       PyTorch's losses over ten training steps on that batch, one per line

PyTorch computes in float64 on the CPU; the files hold float32. It is an optional dependency: pip install -e '.[oracle]'.
"""

from pathlib import Path

import numpy as np

from gpt2_numba.check_model import ADAMW, GRAD_CLIP, STEPS
from gpt2_numba.command_line import Parser, exit_code, file_name, main_program, user_path
from gpt2_numba.config import parameter_shapes, parse_descriptor
from gpt2_numba.data.making.shard_writer import cannot_write
from gpt2_numba.errors import UserError
from gpt2_numba.initial_weights import initial_weights
from gpt2_numba.training.debug_state_file import DebugState, write_debug_state
from gpt2_numba.training.model_file import write_model_file


def parse_arguments(argv):
    parser = Parser(
        prog="python -m dev.data.make_debug_state",
        description="Make a model file, its debug state and its first ten losses with PyTorch.",
        allow_abbrev=False,
    )
    parser.add_argument("-e", "--model", default="d12", help="descriptor of the model (default: d12)")
    parser.add_argument("-b", "--batch-size", type=int, default=4, metavar="B", help="rows of the batch (default: 4)")
    parser.add_argument("-t", "--sequence-length", type=int, default=64, metavar="T", help="tokens of a row (default: 64)")
    parser.add_argument("--seed", type=int, default=42, help="seed of weights and tokens (default: 42)")
    parser.add_argument("--out", type=user_path, default=Path("."), metavar="DIR", help="directory for the files (default: this one)")
    parser.add_argument("--name", type=file_name, default="model", help="beginning of the files' names (default: model)")
    arguments = parser.parse_args(argv)
    arguments.config = parse_descriptor(arguments.model)
    if arguments.batch_size < 1:
        raise UserError(f"the batch size (-b) must be at least 1, got {arguments.batch_size}")
    if (
        not 2 <= arguments.sequence_length <= arguments.config.max_T
    ):  # with one token the gradients of attention are nothing but rounding errors
        raise UserError(
            f"the sequence length (-t) must be from 2 to the model's longest context, {arguments.config.max_T}, "
            f"got {arguments.sequence_length}"
        )
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed must be from 0 to 2**32 - 1, got {arguments.seed}")
    return arguments


def compute_debug_state(model, config, inputs, targets):
    """The DebugState of a TorchGPT2 for a batch of int32 (B, T) arrays; float32 whatever type the model computes in."""
    import torch

    tokens = torch.from_numpy(inputs).long()
    model.zero_grad()
    loss = model(tokens, torch.from_numpy(targets).long())
    loss.backward()
    gradients = {name: gradient.astype(np.float32) for name, gradient in model.to_numpy(lambda parameter: parameter.grad).items()}
    gradients["wte"] = np.pad(gradients["wte"], ((0, config.Vp - config.V), (0, 0)))  # the padding has no gradients
    with torch.no_grad():
        logits = model.logits(tokens).float().numpy()
    return DebugState(inputs, targets, logits, loss.item(), gradients)


def ten_losses(model, inputs, targets):
    """The losses of the training steps that check_model repeats. Changes the model."""
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(), ADAMW["learning_rate"], (ADAMW["beta1"], ADAMW["beta2"]), ADAMW["eps"], ADAMW["weight_decay"]
    )
    inputs, targets = torch.from_numpy(inputs).long(), torch.from_numpy(targets).long()
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimizer.step()
        losses.append(loss.item())
    return losses


def run(argv):
    arguments = parse_arguments(argv)
    try:
        from dev.oracle.torch_gpt2 import TorchGPT2
    except ImportError as error:
        raise UserError(f"debug states are made with PyTorch, which is missing ({error}): pip install -e '.[oracle]'") from error
    config, shapes = arguments.config, parameter_shapes(arguments.config)
    weights = initial_weights(config, shapes, arguments.seed)
    generator = np.random.default_rng(arguments.seed)
    batch = [generator.integers(0, config.V, (arguments.batch_size, arguments.sequence_length), np.int32) for _ in range(2)]
    model = TorchGPT2(config.L, config.NH, config.C, config.max_T, config.V)
    model.load(weights)
    # float64, so that the files are correct to the last bit of float32. In float32 the losses of d12 drift by up to 4e-5 from step 3 on,
    # because clip_grad_norm_ adds up the squares of 124 million gradients in float32.
    model.double()
    state = compute_debug_state(model, config, *batch)
    losses = ten_losses(model, *batch)

    stem = arguments.out / arguments.name
    paths = [stem.with_name(stem.name + ending) for ending in (".bin", "_debug_state.bin", "_losses.txt")]
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_model_file(paths[0], config, np.concatenate([weights[name].reshape(-1) for name in shapes]))
        write_debug_state(paths[1], config, shapes, state)
        paths[2].write_text("".join(f"{loss:.9g}\n" for loss in losses))
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise cannot_write(arguments.out, error) from error
    print(f"test with: python -m gpt2_numba.check_model {paths[0]} {paths[1]} --losses {paths[2]}")


def main(argv=None):
    """The command line. Returns the exit code: 0, or 2 for a user error."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
