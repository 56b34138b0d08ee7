"""MODEL of a command line: a trained model of some kind, and how it is to be used when the command line leaves that open.

a run's log directory    its newest checkpoint          a model file           of ours or llm.c's
a checkpoint             its DONE file                  a Hugging Face folder  or a name of the hub, such as gpt2-xl
"""

import os
from typing import NamedTuple

from gpt2_numba.config import GPT2Config, count_parameters
from gpt2_numba.data.tokenizers import byte_encoding, encoding_for_vocab, gpt2_encoding
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import BFLOAT16_BITS, bfloat16_supported, real_gpu
from gpt2_numba.huggingface import is_huggingface, read_huggingface
from gpt2_numba.huggingface.folder import CONFIG_FILE
from gpt2_numba.model import LOAD_PIECE
from gpt2_numba.options import Options
from gpt2_numba.progress import Progress
from gpt2_numba.training.saved_model import read_saved_model


class Source(NamedTuple):
    """Where parameters come from: a flat array, as read_model_file returns it, or pieces for load_pieces."""

    config: GPT2Config
    flat: object | None = None
    pieces: object | None = None

    def context(self, asked, flag):
        """The context of the model, tokens: `asked`, by a flag, or the longest. Raises UserError if it is longer than that."""
        longest = self.config.max_T
        if asked and asked > longest:
            raise UserError(f"{flag} must be at most the model's longest context, {longest}, got {asked}")
        return asked or longest

    def load(self, model):
        """Set the parameters of a model of this config."""
        with Progress("loading the model", count_parameters(self.config), "parameters") as progress:
            if self.pieces is not None:
                model.load_pieces(_watched(self.pieces, progress))
                return
            for start in range(0, len(self.flat), LOAD_PIECE):
                piece = self.flat[start : start + LOAD_PIECE]
                model.load_part("params", start, piece)
                progress.advance(len(piece))


def _watched(pieces, progress):
    for name, layer, values in pieces:
        yield name, layer, values
        progress.advance(values.size)


def open_source(name):
    """The Source that MODEL names. Raises UserError if there is no such model."""
    path = os.path.expanduser(name)
    of_a_run = path.endswith(".bin") or os.path.isfile(path) or os.path.isdir(path) and not os.path.exists(os.path.join(path, CONFIG_FILE))
    if of_a_run:
        config, flat, _ = read_saved_model(path)
        return Source(config, flat=flat)
    if is_huggingface(path):
        config, pieces = read_huggingface(path)
        return Source(config, pieces=pieces)
    raise UserError(
        f"the model must be a log directory, a checkpoint, a model file, a Hugging Face folder or a name of its hub, got {name[:200]!r}, and "
        "there is nothing of that name: check the path"
    )


def add_model_options(add):
    """How MODEL is to be used: --device, --precision and --kernels, which choose_options reads. add: add_argument of a parser or a group."""
    add("--device", choices=("auto", "cpu", "gpu"), default="auto", help="default auto: a GPU if there is one")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="default auto: that of the model file, bf16 only on a GPU")
    add("--kernels", metavar="SET", default="auto", help="as in python -m gpt2_numba.train (default auto)")


def choose_options(settings, source):
    """The Options of the model: on a GPU if there is one, in the precision of the file."""
    device = settings.device if settings.device != "auto" else "gpu" if real_gpu() else "cpu"
    precision = settings.precision
    if precision == "auto":
        in_bf16 = source.flat is not None and source.flat.dtype == BFLOAT16_BITS
        precision = "bf16" if in_bf16 and device == "gpu" and settings.kernels in ("auto", "fast") and bfloat16_supported() else "fp32"
    return Options(device=device, precision=precision, kernels=settings.kernels, tf32=False)


def choose_encoding(name, V):
    """The tiktoken.Encoding of --tokenizer; None if prompt and text are token numbers. Raises UserError if the model does not fit it."""
    encoding = {"auto": lambda: encoding_for_vocab(V), "gpt2": gpt2_encoding, "bytes": byte_encoding, "none": lambda: None}[name]()
    if encoding and encoding.n_vocab > V:
        raise UserError(f"the tokenizer must have at most the model's {V} tokens, and {name} has {encoding.n_vocab}: use --tokenizer none")
    return encoding
