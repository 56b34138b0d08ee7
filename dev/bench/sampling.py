"""How fast text is generated: token by token with a cache, beside the naive way, one whole forward pass for each token.

    python -m dev.bench.sampling [--models d12,d48] [--batches 1,8] [--precision bf16] [--prompt 64] [--tokens 256] [--json FILE]

Weights are random: the time does not depend on them. The prompt is `--prompt` random tokens; then `--tokens` tokens are generated, each
chosen on the host from logits of the whole vocabulary, as python -m gpt2_numba.sample does with --top-k 50. The first eighth, at least
three tokens, is not timed: kernels are compiled, products planned and launches recorded. The naive way runs the batch through the model
padded to 32, 64, 128, ... tokens, as short as possible; it is timed over fewer tokens at the same contexts, evenly spaced. `share` is the
share of memory bandwidth, --bandwidth in GB/s, that reading the parameters once for each token would take.

Both ways must choose the same tokens in fp32: that is checked first, for a few tokens. (In bf16 they may differ: rounding.)
"""

import json
import math
import time
from dataclasses import asdict, dataclass

import numpy as np

from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.config import ONCE, count_parameters, parameter_shapes, parse_descriptor
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import device_name, real_gpu
from gpt2_numba.inference import Decoder, ForwardModel, generate, padded_length
from gpt2_numba.options import Options
from gpt2_numba.training.sampler import Xorshift64Star, choose_token

NAIVE_TOKENS = 16  # timed
CHECKED_TOKENS = 8


class WholePasses:
    """Takes and gives what a Decoder does, but keeps only the tokens: each step is a forward pass over all of them."""

    def __init__(self, model, B=1, slide=None):
        """model: its `forward` must take B rows. B, slide: see Decoder."""
        self.model, self.B, self.T, self.slide = model, B, model.T, slide or max(1, model.T // 2)

    def read(self, tokens):
        """Start over with the tokens (B, t). Returns logits (B, V)."""
        self.tokens = np.array(tokens, np.int32)
        inputs = np.zeros((self.B, padded_length(self.tokens.shape[1], self.T)), np.int32)
        inputs[:, : self.tokens.shape[1]] = self.tokens
        self.model.forward(inputs)
        last = self.tokens.shape[1] - 1
        return np.stack([self.model.last_logits(b * inputs.shape[1] + last) for b in range(self.B)])

    def step(self, tokens):
        """Append one token to each sequence. Returns logits (B, V)."""
        tokens = np.concatenate([self.tokens, np.array(tokens, np.int32)[:, None]], axis=1)
        return self.read(tokens if tokens.shape[1] <= self.T else tokens[:, self.slide :])


@dataclass(frozen=True)
class Speed:
    """The speed of one way to generate, in tokens per second over all B sequences."""

    model: str
    precision: str
    B: int
    way: str
    tokens_per_second: float
    milliseconds: float  # for one token of each sequence
    share: float | None  # of the memory bandwidth


def choosers(B, seed=1337):
    """B functions that choose a token from logits, each with coins of its own."""
    coins = [Xorshift64Star(seed + b) for b in range(B)]
    return [lambda logits, own=own: choose_token(logits, own.next_coin(), top_k=50) for own in coins]


def time_cached(model, B, prompt, count):
    """Seconds for one token of each sequence, with the cache."""
    unmeasured = max(3, count // 8)
    tokens = generate(Decoder(model, B), prompt, unmeasured + count, choosers(B), end=-1)
    for _ in range(unmeasured):
        next(tokens)
    begun = time.perf_counter()
    done = sum(1 for _ in tokens)
    return (time.perf_counter() - begun) / done


def time_naive(model, B, prompt, count):
    """Seconds for one token of each sequence by whole forward passes, at contexts from the prompt's length to `count` tokens more."""
    whole, choose = WholePasses(model, B), choosers(B)
    contexts = np.linspace(len(prompt), min(len(prompt) + count, model.T), min(count, NAIVE_TOKENS)).astype(int)
    tokens = np.resize(np.array(prompt, np.int32), (B, contexts[-1]))

    def one(t):
        return [chooser(row) for chooser, row in zip(choose, whole.read(tokens[:, :t]))]

    for t in {padded_length(t, model.T): t for t in contexts.tolist()}.values():  # twice: the second time, launches are recorded
        one(t), one(t)
    begun = time.perf_counter()
    for t in contexts:
        one(t)
    return (time.perf_counter() - begun) / len(contexts)


def check(model, B, prompt):
    """Raise UserError if the two ways choose different tokens."""
    cached, naive = (list(generate(way(model, B), prompt, CHECKED_TOKENS, choosers(B), end=-1)) for way in (Decoder, WholePasses))
    if cached != naive:
        raise UserError(f"with and without the cache the tokens must be the same in fp32, got {cached} and {naive}")


def repeated_weights(config):
    """The pieces of a model: normal numbers with a deviation of 0.02, the same ones in every tensor; LayerNorms multiply by 1."""
    shapes = parameter_shapes(config)
    longest = max(math.prod(shape if name in ONCE else shape[1:]) for name, shape in shapes.items())
    normal = np.random.default_rng(1).standard_normal(longest, np.float32) * np.float32(0.02)
    for name, shape in shapes.items():
        layers, shape = (1, shape) if name in ONCE else (config.L, shape[1:])
        values = np.ones(shape, np.float32) if name in ("ln1w", "ln2w", "lnfw") else normal[: math.prod(shape)].reshape(shape)
        yield from ((name, layer, values) for layer in range(layers))


def measure(name, batches, settings):
    """Speeds of a model: cached, naive, for each batch."""
    config, B = parse_descriptor(name), max(batches)
    T = min(config.max_T, settings.prompt + settings.tokens + max(3, settings.tokens // 8))
    if T < settings.prompt + 2:
        raise UserError(
            f"the prompt must be at least two tokens shorter than the context of {name}, {config.max_T}: use a smaller --prompt"
        )
    options = Options(
        device=settings.device, precision=settings.precision, kernels=settings.kernels, tf32=False, gelu_fusion=settings.gelu_fusion
    )
    model = ForwardModel(config, B, T, options, rows=B)
    model.load_pieces(repeated_weights(config))
    prompt = np.random.default_rng(0).integers(config.V, size=settings.prompt).tolist()
    count, nbytes = min(settings.tokens, T - settings.prompt), count_parameters(config) * (2 if settings.precision == "bf16" else 4)
    speeds = []
    for B in batches:
        if settings.precision == "fp32":
            check(model, B, prompt)
        for way, timed in (("cached", time_cached), ("naive", time_naive)):
            seconds = timed(model, B, prompt, count)
            share = nbytes / seconds / (settings.bandwidth * 1e9) if settings.bandwidth and way == "cached" else None
            speeds.append(Speed(name, settings.precision, B, way, B / seconds, 1000 * seconds, share))
        print(table(speeds[-2:]), flush=True)
    return speeds


def table(speeds):
    """The speeds as text: a line for each model and batch."""
    lines = [f"{'model':<28}{'B':>3}{'cached tok/s':>15}{'ms':>9}{'naive tok/s':>14}{'ms':>9}{'ratio':>8}{'share':>8}"]
    for cached, naive in zip(speeds[::2], speeds[1::2]):
        share = "" if cached.share is None else f"{100 * cached.share:.0f} %"
        lines.append(
            f"{cached.model:<28}{cached.B:>3}{cached.tokens_per_second:15,.1f}{cached.milliseconds:9.3f}{naive.tokens_per_second:14,.1f}"
            f"{naive.milliseconds:9.2f}{cached.tokens_per_second / naive.tokens_per_second:8.1f}{share:>8}"
        )
    return "\n".join(lines)


def run(argv):
    """Measure what the command line asks for, and print a table."""
    parser = Parser(prog="python -m dev.bench.sampling", doc=__doc__)
    parser.add_argument("--models", default="d12,d48", help="names, with commas or, if one has commas itself, semicolons between")
    parser.add_argument("--batches", default="1,8", help="sequences side by side (default 1,8)")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt (default 64)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens that are timed (default 256)")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="gpu" if real_gpu() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU, otherwise fp32")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--gelu-fusion", type=int, choices=(0, 1), default=0, help="1: cuBLASLt computes the GELU in its epilogue")
    parser.add_argument("--bandwidth", type=float, help="of the GPU's memory, GB/s: then the share of it is printed")
    parser.add_argument("--json", metavar="FILE")
    settings = parser.parse_args(argv)
    settings.precision = settings.precision or ("bf16" if settings.device == "gpu" and real_gpu() else "fp32")
    speeds = []
    print(device_name() if settings.device == "gpu" else "CPU", settings.precision)
    for name in settings.models.split(";" if ";" in settings.models or "=" in settings.models else ","):
        speeds += measure(name, list(map(int, settings.batches.split(","))), settings)
    if settings.json:
        with open(settings.json, "w") as file:
            json.dump({"device": device_name() if settings.device == "gpu" else "CPU", "speeds": list(map(asdict, speeds))}, file, indent=1)


def main(argv):
    """Run the command line. Returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
