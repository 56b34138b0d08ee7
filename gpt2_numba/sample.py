"""Let a model write text: it continues a prompt, or one prompt after another.

    python -m gpt2_numba.sample MODEL --prompt "Once upon a time" --tokens 200
    python -m gpt2_numba.sample MODEL                  each line is a prompt; Ctrl-C stops an answer, Ctrl-D ends the program

MODEL is a run's log directory (its newest checkpoint), a checkpoint (its DONE file), a model file of ours or llm.c's, a Hugging Face
folder, or gpt2, gpt2-medium, gpt2-large, gpt2-xl or another name of the hub. The text appears on stdout, token by token; everything else
goes to stderr. The same command gives the same text.
"""

import codecs
import sys
import time

from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.data.tokenizers import encode
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import device_name
from gpt2_numba.inference import Decoder, ForwardModel, generate
from gpt2_numba.named_model import add_model_options, choose_encoding, choose_options, open_source
from gpt2_numba.training.sampler import Xorshift64Star, choose_token

DEFAULT_SEED = 1337  # that of the trainer's samples
PROMPT = "> "


# ------------------------------------------------------------------------------------------------------------- the text


class TextStream:
    """Turns tokens into text, a piece for each token, in whole characters: one of several bytes may be spread over several tokens."""

    def __init__(self, encoding):
        self._encoding = encoding
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def text(self, token):
        """The text that is complete with this token. Without an encoding, its number."""
        if self._encoding is None:
            return f" {token}"
        return self._utf8.decode(self._encoding.decode_single_token_bytes(token))

    def rest(self):
        """What remains at the end: a replacement character if the last one is not complete."""
        return self._utf8.decode(b"", final=True)


def prompt_tokens(prompt, encoding, end, V):
    """The tokens of a prompt, after end-of-text, with which documents begin. Without an encoding, a prompt is numbers with spaces between.

    Raises UserError if it is not.
    """
    if encoding is not None:
        return [end, *encode(encoding, prompt)]
    words = prompt.split()
    if not all(word.isascii() and word.isdecimal() and len(word) < 10 and int(word) < V for word in words):
        raise UserError(
            f"a model without a tokenizer takes prompts of token numbers from 0 to {V - 1}, with spaces between, got {prompt[:80]!r}: give "
            "numbers, or its tokenizer (--tokenizer)"
        )
    return [end, *map(int, words)]


def coin_sequences(seed, count):
    """`count` generators of coins. The first is that of the seed; a text does not depend on how many are written beside it."""
    seeds = Xorshift64Star(seed)
    return [Xorshift64Star(seed if i == 0 else (seeds.next_u32() << 32 | seeds.next_u32()) or 1) for i in range(count)]


def make_choosers(V, seed, count, **choices):
    """`count` functions (logits) -> token below V, each with coins of its own. choices: those of choose_token."""
    return [lambda logits, coins=coins: choose_token(logits[:V], coins.next_coin(), **choices) for coins in coin_sequences(seed, count)]


class Writer:
    """Continues prompts with a model, and prints the texts."""

    def __init__(self, settings, model, encoding, end):
        self.settings, self.encoding, self.end = settings, encoding, end
        self.decoder = Decoder(model, settings.samples)
        choices = dict(temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)
        V = encoding.n_vocab if encoding else model.config.V  # the model's may include the padding of its matrix
        self._choosers = make_choosers(V, settings.seed, settings.samples, **choices)

    def write(self, tokens, prompt=""):
        """Print `prompt` and the text that follows the tokens; of several texts the first as it comes, the others after it."""
        streams = [TextStream(self.encoding) for _ in self._choosers]
        others = [[prompt] for _ in streams]
        count, begun, first = 0, time.perf_counter(), None
        self._heading(0)
        _print(prompt)
        for new in generate(self.decoder, tokens, self.settings.tokens, self._choosers, self.end):
            first = first or time.perf_counter()
            for i, token in enumerate(new):
                if token is None or token == self.end:
                    continue
                count += 1
                text = streams[i].text(token)
                _print(text) if i == 0 else others[i].append(text)
        seconds = time.perf_counter()
        _print(streams[0].rest() + "\n")
        for i in range(1, len(streams)):
            self._heading(i)
            _print("".join(others[i]) + streams[i].rest() + "\n")
        if count > len(streams):
            rate = (count - len(streams)) / max(seconds - first, 1e-9)  # the first ones come with the prompt
            print(f"{len(tokens)} tokens read in {first - begun:.2f} s, {count} written, {rate:,.1f} tok/s", file=sys.stderr)

    def _heading(self, i):
        if len(self._choosers) > 1:
            _print(f"--- {i + 1} of {len(self._choosers)}\n")

    def converse(self):
        """Continue one line of stdin after the other, until its end."""
        if sys.stdin.isatty():
            _line_editing()
            print("Each line is a prompt. Ctrl-C stops an answer, Ctrl-D ends.", file=sys.stderr)
        elif hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="replace")  # a byte that is no text does not end a stream of prompts
        while (line := _next_line()) is not None:
            try:
                self.write(prompt_tokens(line, self.encoding, self.end, self.decoder.model.config.V))
            except KeyboardInterrupt:
                _print("\n")
            except UserError as error:
                if not sys.stdin.isatty():
                    raise
                print(f"error: {error}", file=sys.stderr)


def _print(text):
    sys.stdout.write(text)
    sys.stdout.flush()


def _line_editing():
    try:
        import readline  # noqa: F401  # input() then has arrow keys and a history
    except ImportError:  # Windows
        pass


def _next_line():
    """The next line of stdin, None at its end."""
    try:
        return input(PROMPT if sys.stdin.isatty() else "")
    except EOFError:
        if sys.stdin.isatty():
            _print("\n")
        return None


# ------------------------------------------------------------------------------------------------------ the command line


def _number(kind, low, high=float("inf"), what=""):
    """An argument's type: a number from low to high."""

    def convert(text):
        value = kind(text)
        if not low <= value <= high:
            raise ValueError
        return value

    convert.__name__ = what  # argparse says: invalid ... value
    return convert


def parse(argv):
    """The settings of a command line."""
    parser = Parser(prog="python -m gpt2_numba.sample", doc=__doc__, allow_abbrev=False)
    add = parser.add_argument
    count, share = "number (an integer from 1 on)", "number (above 0, at most 1)"
    add("model", metavar="MODEL", help="log directory, checkpoint, model file, Hugging Face folder, or a name such as gpt2-xl")
    add("--prompt", metavar="TEXT", help='the text to continue, "" for a new document (default: each line of stdin is one)')
    add("--tokens", metavar="N", type=_number(int, 1, what=count), default=100, help="write at most N tokens (default 100)")
    add("--samples", metavar="N", type=_number(int, 1, what=count), default=1, help="continue the prompt N times, side by side (default 1)")
    add(
        "--temperature", metavar="X", type=_number(float, 0, 1e6, "number (from 0 on)"), default=1.0,
        help="below 1 likely tokens become likelier still, 0 always takes the likeliest (default 1)",
    )  # fmt: skip
    add(
        "--top-k", metavar="K", type=_number(int, 0, what="number (an integer from 0 on)"), default=50,
        help="choose among the K likeliest tokens; 0: among all (default 50)",
    )  # fmt: skip
    add(
        "--top-p", metavar="P", type=_number(float, 1e-9, 1, share), default=1.0,
        help="choose among the likeliest tokens that together have probability P (default 1: all)",
    )  # fmt: skip
    add(
        "--seed", metavar="S", type=_number(int, 1, 2**64 - 1, "number (an integer from 1 to 2^64 - 1)"), default=DEFAULT_SEED,
        help=f"of the random choices (default {DEFAULT_SEED})",
    )  # fmt: skip
    add("--context", metavar="T", type=_number(int, 1, what=count), help="longest context in tokens (default: the model's)")
    add(
        "--tokenizer", choices=("auto", "gpt2", "bytes", "none"), default="auto",
        help="auto: by the vocabulary, 257 bytes, 50257 gpt2, otherwise none; none: prompt and text are token numbers",
    )  # fmt: skip
    add_model_options(add)
    return parser.parse_args(argv)


def run(argv):
    """Write what the command line asks for."""
    settings = parse(argv)
    source = open_source(settings.model)
    config = source.config
    T = source.context(settings.context, "--context")
    encoding = choose_encoding(settings.tokenizer, config.V)
    end = config.V - 1 if encoding is None else encoding.eot_token
    tokens = None
    if settings.prompt is not None:
        tokens = prompt_tokens(settings.prompt, encoding, end, config.V)
        T = min(T, len(tokens) + settings.tokens)  # no more memory than this text needs
    options = choose_options(settings, source)
    model = ForwardModel(config, settings.samples, T, options)
    where = device_name() if options.device == "gpu" else "CPU"
    print(f"{config}, {options.precision}, kernels {model.kernels.name}, {where}", file=sys.stderr)
    source.load(model)
    writer = Writer(settings, model, encoding, end)
    if tokens is None:
        writer.converse()
    else:
        writer.write(tokens, settings.prompt)


def main(argv):
    """Run the command line. Returns the exit code: 0, or 2 for a mistake of the user's, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
