"""An exported model in transformers: does it predict each token as the model here does?

    python -m dev.oracle.exported_losses log124M hf124M --shards 'data/mine_val_*.bin' --tokens 262144

MODEL is what python -m gpt2_numba.evaluate takes, FOLDER what python -m gpt2_numba.export has written. Both predict the same tokens in
float32, on a GPU if there is one: ours with the kernels of this package, the folder with transformers' GPT2LMHeadModel. Prints both mean
losses and the largest difference of a single token. Exit code 1 if that is more than the rounding of float32 explains.
"""

import numpy as np

from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.data.token_shards import Shard, find_shards
from gpt2_numba.errors import UserError
from gpt2_numba.evaluation_model import EvaluationModel
from gpt2_numba.gpu.backend import real_gpu
from gpt2_numba.named_model import open_source
from gpt2_numba.options import Options
from gpt2_numba.progress import Progress

ROWS = 4  # of a batch
LARGEST_DIFFERENCE = 2e-3  # nats, of one token: float32 logits of about 100, whose sums have another order in each program


def read_rows(pattern, T, count):
    """(inputs, targets), int32 (n, T), n a multiple of ROWS: the first `count` tokens of the shards, or as many as there are."""
    pieces, wanted = [], count + 1
    for path in find_shards(pattern):
        pieces.append(Shard(path)[:wanted])
        wanted -= len(pieces[-1])
        if not wanted:
            break
    tokens = np.concatenate(pieces)
    n = (len(tokens) - 1) // T // ROWS * ROWS
    if not n:
        raise UserError(f"{pattern}: must have at least {ROWS * T + 1:,} tokens, got {len(tokens):,}: give more with --tokens")
    return tokens[: n * T].reshape(n, T).astype(np.int32), tokens[1 : n * T + 1].reshape(n, T).astype(np.int32)


def our_losses(source, inputs, targets):
    """Nats of each target, (n, T) float32, with the kernels of this package."""
    T = inputs.shape[1]
    model = EvaluationModel(source.config, T, Options(device="gpu" if real_gpu() else "cpu", tf32=False), ROWS * T)
    source.load(model)
    losses = []
    with Progress("gpt2_numba", inputs.size, "tokens") as progress:
        for row in range(0, len(inputs), ROWS):
            model.evaluate(inputs[row : row + ROWS], targets[row : row + ROWS])
            losses.append(model.losses_to_host().copy())
            progress.advance(ROWS * T)
    return np.concatenate(losses)


def their_losses(folder, inputs, targets):
    """The same with transformers."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_float32_matmul_precision("highest")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    losses = []
    with Progress("transformers", inputs.size, "tokens") as progress, torch.no_grad():
        for row in range(0, len(inputs), ROWS):
            batch, wanted = (torch.from_numpy(array[row : row + ROWS].astype(np.int64)).to(device) for array in (inputs, targets))
            logits = model(batch).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
            losses.append(loss.view(wanted.shape).cpu().numpy())
            progress.advance(batch.numel())
    return np.concatenate(losses)


def run(argv):
    """Compare as the command line says. Returns the exit code."""
    parser = Parser(prog="python -m dev.oracle.exported_losses", doc=__doc__, allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="log directory, checkpoint or model file")
    parser.add_argument("folder", metavar="FOLDER", help="what it was exported to")
    parser.add_argument("--shards", metavar="PATTERN", required=True, help="token shards")
    parser.add_argument("--tokens", metavar="N", type=int, default=65536, help="predict the first N tokens (default 65536)")
    parser.add_argument("-t", "--sequence-length", metavar="T", type=int, help="tokens of a row (default: the model's longest context)")
    settings = parser.parse_args(argv)
    source = open_source(settings.model)
    T = min(settings.sequence_length or source.config.max_T, source.config.max_T)
    inputs, targets = read_rows(settings.shards, T, settings.tokens)
    ours, theirs = our_losses(source, inputs, targets), their_losses(settings.folder, inputs, targets)
    difference = np.abs(ours - theirs)
    place = np.unravel_index(difference.argmax(), difference.shape)
    print(f"{inputs.size:,} tokens in rows of {T}, float32; mean loss in nats per token")
    print(f"  gpt2_numba      {ours.mean(dtype=np.float64):.7f}    {settings.model}")
    print(f"  transformers    {theirs.mean(dtype=np.float64):.7f}    {settings.folder}")
    print(f"  largest difference of a token {difference.max():.1e}, bound {LARGEST_DIFFERENCE:.0e}, at row {place[0]}, token {place[1]}")
    return int(not difference.max() <= LARGEST_DIFFERENCE)


def main(argv):
    """Run the command line. Returns the exit code: 0, 1 if the losses differ, 2 for a mistake of the user's, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
