"""How good is a model? Its loss, perplexity and bits per byte on any text, and its answers to multiple-choice questions.

    python -m gpt2_numba.evaluate MODEL --text book.txt
    python -m gpt2_numba.evaluate MODEL --shards 'data/mine_val_*.bin'
    python -m gpt2_numba.evaluate MODEL --questions data/hellaswag_val.bin

MODEL is a run's log directory (its newest checkpoint), a checkpoint (its DONE file), a model file of ours or llm.c's, a Hugging Face
folder, or a name of the hub such as gpt2-xl. Without --text, --shards and --questions a model of bytes is evaluated on the built-in corpus.
docs/evaluation.md says what the numbers mean.
"""

import itertools
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.config import VOCAB_PADDING
from gpt2_numba.data.builtin_corpus import builtin_corpus
from gpt2_numba.data.evaluation.answers import Answers
from gpt2_numba.data.evaluation.multiple_choice import read_share
from gpt2_numba.data.evaluation.rows_by_length import batches_by_length, losses_of_batches, padded_share
from gpt2_numba.data.evaluation.text_windows import TextLosses, token_bytes, windows_of_text
from gpt2_numba.data.making.text_parts import TextOptions, parse_split, parts_of_paths
from gpt2_numba.data.making.tokenizing import encode_units
from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.data.token_shards import Shard, find_shards
from gpt2_numba.data.tokenizer_record import tokenizer_of_shards
from gpt2_numba.data.tokenizers import BYTE_VOCAB_SIZE, VOCAB_SIZES
from gpt2_numba.errors import UserError
from gpt2_numba.evaluation_model import EvaluationModel
from gpt2_numba.gpu.backend import device_name
from gpt2_numba.integers import round_up
from gpt2_numba.named_model import add_model_options, choose_encoding, choose_options, open_source
from gpt2_numba.progress import Progress
from gpt2_numba.training.settings import default_gelu_fusion

# --------------------------------------------------------------------------------------------------------------- text


class Text(NamedTuple):
    """A text to predict. parts: sequences of tokens, each a text of its own; name: as it is printed."""

    name: str
    parts: list
    encoding: object | None  # of its tokens; None: unknown

    def windows(self, T, stride, limit):
        """(part, Window) for each window; `limit` tokens are predicted, the first ones (None: all). Raises UserError if there is none."""
        found, left = [], math.inf if limit is None else limit
        for part in self.parts:
            for window in windows_of_text(len(part), T, stride):
                predicted = min(left, window.end - window.begin - window.context)
                if not predicted:
                    return found
                found.append((part, window._replace(end=window.begin + window.context + predicted)))
                left -= predicted
        if not found:
            raise UserError(f"{self.name}: a text must have at least two tokens, so that one is predicted: give a longer one")
        return found


def open_text(settings, V):
    """The Text of the command line, or None. V: the model's vocabulary."""
    if settings.text:
        return tokenize_files(settings, V)
    if settings.shards:
        return open_shards(settings, V)
    if settings.questions:
        return None
    if V != BYTE_VOCAB_SIZE:
        raise UserError(f"a model with {V} tokens needs something to be evaluated on: give --text, --shards or --questions")
    return Text("the built-in corpus, its validation part", [builtin_corpus()[1]], choose_encoding("bytes", V))


def tokenize_files(settings, V):
    """The Text of --text: each document is a part, after end-of-text, which is not predicted."""
    encoding = choose_encoding(settings.tokenizer, V)
    if encoding is None:
        raise UserError(
            f"a text needs a tokenizer, and none is known for a vocabulary of {V}: give token shards (--shards), or --tokenizer"
        )
    options = TextOptions(parse_split(settings.split), settings.field, settings.replace_invalid)
    parts, _ = parts_of_paths(settings.text, options)
    units = ((None, unit) for part in parts for unit in part.units())
    arrays, count, limit = [np.empty(0, np.uint16)], 0, math.inf if settings.tokens is None else settings.tokens
    name = str(settings.text[0]) if len(settings.text) == 1 else f"{settings.text[0]} and {len(settings.text) - 1} more"
    with Progress("tokenizing", sum(part.size for part in parts), "B") as progress:
        for _, unit, encoded in encode_units(units, encoding.name, processes=1):
            progress.advance(unit.size)
            arrays.append(encoded.tokens)
            count += len(encoded.tokens)
            if count > 2 * limit:  # of two tokens at least one is predicted
                break
    tokens = np.concatenate(arrays)
    begins = np.flatnonzero(tokens == encoding.eot_token)
    documents = np.split(tokens, begins)[1:]
    return Text(f"{name}: {len(documents):,} document{'s' * (len(documents) != 1)}", documents, encoding)


def open_shards(settings, V):
    """The Text of --shards: each shard is a part, as for the trainer."""
    paths = list(dict.fromkeys(itertools.chain.from_iterable(find_shards(pattern) for pattern in settings.shards)))
    recorded = tokenizer_of_shards(paths)
    if settings.tokenizer == "auto" and recorded in VOCAB_SIZES:
        size = VOCAB_SIZES[recorded]
        if not size <= V <= round_up(size, VOCAB_PADDING):  # some programs count the padding of the matrix
            raise UserError(
                f"{paths[0]}: the model must have the vocabulary of the shards' tokenizer, {recorded}, of {size} tokens, and has {V}: give "
                "shards made with its own tokenizer"
            )
        settings.tokenizer = recorded
    shards = [Shard(path) for path in paths]
    name = str(paths[0]) if len(paths) == 1 else f"{len(paths)} shards, {paths[0]} to {paths[-1].name}"
    return Text(name, shards, _encoding_if_any(settings.tokenizer, V))


def _encoding_if_any(name, V):
    try:
        return choose_encoding(name, V)
    except UserError as error:
        print(f"bytes and characters are not counted: {error}")
        return None


def evaluate_text(model, text, stride=None, limit=None):
    """The TextLosses of a model on a Text. stride, limit: see windows_of_text and Text.windows."""
    windows = text.windows(model.T, stride, limit)
    lengths = [window.end - window.begin - 1 for _, window in windows]
    total = sum(window.end - window.begin - window.context for _, window in windows)

    def read(row):
        part, window = windows[row]
        return part[window.begin : window.end]

    result = TextLosses(None if text.encoding is None else token_bytes(text.encoding, model.config.V))
    with Progress("evaluating", total, "tokens") as progress:
        for batch, losses in losses_of_batches(model, batches_by_length(lengths, read, model.batch_tokens, model.T)):
            for place, row in enumerate(batch.rows.tolist()):
                predicted = slice(windows[row][1].context - 1, lengths[row])
                result.add(losses[place, predicted], batch.targets[place, predicted])
                progress.advance(predicted.stop - predicted.start)
    return result


def report_text(text, result, T, stride):
    """Print what a TextLosses amounts to. Returns it as a dictionary."""
    loss, bits = result.loss(), result.bits_per_byte()
    perplexity = loss.map(math.exp)
    facts = {"text": text.name, "tokens": result.tokens, "loss": loss, "perplexity": perplexity}
    sizes = f"{result.tokens:,} tokens predicted"
    if bits:
        sizes += f", {result.bytes:,} bytes"
        facts |= {"bytes": result.bytes, "bits_per_byte": bits}
    print(f"{text.name}\n  {sizes}, {_windows_in_words(T, stride or T)}")
    print(f"  loss           {_in_words(loss, 4)}, nats per token")
    print(f"  perplexity     {_in_words(perplexity, 3)}")
    if bits:
        print(f"  bits per byte  {_in_words(bits, 4)}")
    return {name: fact._asdict() if hasattr(fact, "_asdict") else fact for name, fact in facts.items()}


def _windows_in_words(T, stride):
    if stride == T:
        return f"in windows of {T} side by side"
    return f"in windows of {T}, every {stride}: each from {T - stride + 1} tokens before it or more, where there are"


def _in_words(estimate, digits):
    text = f"{estimate.value:.{digits}f}"
    if estimate.interval:
        low, high = estimate.interval
        text += f" (95 % between {low:.{digits}f} and {high:.{digits}f})"
    return text


# ---------------------------------------------------------------------------------------------------------- questions


def evaluate_questions(model, answers, name="answering"):
    """Fill Answers with the losses of a model."""
    with Progress(name, len(answers.rows), "endings") as progress:
        for batch, losses in losses_of_batches(model, answers.batches(model.batch_tokens, model.T)):
            answers.add(batch.rows, losses)
            progress.advance(len(batch.rows))


def report_questions(path, answers, encoding, seconds, padding):
    """Print the scores of Answers that are complete. Returns them as a dictionary. encoding: of their tokens; None: unknown."""
    count = len(answers.examples)
    rules = {"by token": (None, "lowest mean loss per token: llm.c's, the trainer's"), "by sum": (1, "lowest loss: acc")}
    if encoding:
        rules["by character"] = (answers.characters(encoding), "lowest loss per character: acc_norm of lm-eval")
    print(
        f"{path}\n  {count:,} questions in {seconds:,.1f} s, {count / max(seconds, 1e-9):,.0f} a second; {100 * padding:.0f} % is padding"
    )
    facts = {"questions": str(path), "count": count}
    for rule, (sizes, meaning) in rules.items():
        score = answers.score(sizes)
        print(f"  {rule:<13}  {score}    {meaning}")
        facts[rule.replace(" ", "_")] = {"correct": score.correct, "value": score.accuracy, "interval": score.interval}
    return facts


# --------------------------------------------------------------------------------------------------- the command line


def parse(argv):
    """The settings of a command line."""
    parser = Parser(prog="python -m gpt2_numba.evaluate", doc=__doc__, allow_abbrev=False)
    parser.add_argument(
        "model", metavar="MODEL", help="log directory, checkpoint, model file, Hugging Face folder, or a name such as gpt2-xl"
    )
    what = parser.add_argument_group("what to evaluate it on")
    what.add_argument(
        "--text",
        nargs="+",
        metavar="FILE",
        type=user_path,
        help="text, .jsonl or .parquet files, or folders of them: loss and bits per byte",
    )
    what.add_argument(
        "--shards", nargs="+", metavar="PATTERN", help="token shards, such as 'data/mine_val_*.bin': the same of their tokens"
    )
    what.add_argument("--questions", nargs="+", metavar="FILE", type=user_path, default=[], help="evaluation files: HellaSwag, MMLU, ...")
    text = parser.add_argument_group("text")
    text.add_argument("--stride", type=_count, metavar="S", help="a window every S tokens: 1 to T (default: T, windows do not overlap)")
    text.add_argument("--tokens", type=_count, metavar="N", help="predict the first N tokens only (default: all)")
    text.add_argument(
        "--split", default="file", metavar="WHERE", help="where documents begin, as in python -m gpt2_numba.data (default: file)"
    )
    text.add_argument("--field", default="text", help="the field of a .jsonl or .parquet row that holds its text (default: text)")
    text.add_argument("--replace-invalid", action="store_true", help="bytes that are not UTF-8 become U+FFFD (default: an error)")
    questions = parser.add_argument_group("questions")
    questions.add_argument("--limit", type=_count, metavar="N", help="answer the first N of each file only (default: all)")
    how = parser.add_argument_group("how")
    how.add_argument("-t", "--sequence-length", type=_count, metavar="T", help="longest window or question, tokens (default: the model's)")
    how.add_argument(
        "-b", "--batch-tokens", type=_count, metavar="N", help="tokens of a batch, at least T (default: what is fast and fits)"
    )
    how.add_argument(
        "--tokenizer", choices=("auto", "gpt2", "bytes", "none"), default="auto",
        help="auto: as recorded with shards, or by the vocabulary: 257 bytes, 50257 gpt2, otherwise none",
    )  # fmt: skip
    add_model_options(how.add_argument)
    how.add_argument("--tf32", type=int, choices=(0, 1), default=0, help="fp32 on a GPU: products in TF32, as in the trainer (default 0)")
    how.add_argument("--json", metavar="FILE", type=user_path, help="also write the results to FILE, as JSON")
    settings = parser.parse_args(argv)
    if settings.text and settings.shards:
        raise UserError("--text and --shards are two texts, and one is evaluated at a time: give one of them")
    return settings


def _count(text):
    """An argument's type: a number, at least 1, such as 4096, 64k or 10M."""
    factor = {"k": 1000, "m": 10**6}.get(text[-1:].lower(), 1)
    value = int(text if factor == 1 else text[:-1]) * factor
    if not 1 <= value < 2**40:
        raise ValueError
    return value


_count.__name__ = "number (an integer from 1 on)"  # argparse says: invalid ... value


def run(argv):
    """Evaluate as the command line says."""
    settings = parse(argv)
    source = open_source(settings.model)
    config = source.config
    T = source.context(settings.sequence_length, "-t")
    if settings.stride and settings.stride > T:
        raise UserError(
            f"--stride must be at most the window of {T} tokens, got {settings.stride}: tokens between windows would be left out"
        )
    options = choose_options(settings, source)
    options = replace(options, tf32=bool(settings.tf32), gelu_fusion=default_gelu_fusion(options.precision))  # rounds as in the trainer
    text = open_text(settings, config.V)
    questions = {path: read_share(path, T, vocab_size=config.V)[: settings.limit] for path in settings.questions}
    encoding = text.encoding if text else _encoding_if_any(settings.tokenizer, config.V)

    model = EvaluationModel(config, T, options, settings.batch_tokens)
    where = device_name() if options.device == "gpu" else "CPU"
    print(f"{settings.model}: {config}, {options.precision}, kernels {model.kernels.name}, {where}")
    source.load(model)
    results = {"model": settings.model, "sizes": str(config), "precision": options.precision, "T": T}
    if text:
        facts = report_text(text, evaluate_text(model, text, settings.stride, settings.tokens), T, settings.stride)
        results["text"] = facts | {"stride": settings.stride or T}
    for path, examples in questions.items():
        answers, begun = Answers(examples), time.perf_counter()
        evaluate_questions(model, answers, name=path.name)
        seconds, padding = time.perf_counter() - begun, padded_share(answers.lengths, model.batch_tokens, T)
        results.setdefault("questions", []).append(report_questions(path, answers, encoding, seconds, padding))
    if settings.json:
        _write_json(settings.json, results)


def _write_json(path, results):
    try:
        with open_regular(Path(path), "w") as file:
            json.dump(results, file, indent=1)
            file.write("\n")
    except OSError as error:
        raise UserError(f"--json {path}: must be a writable file: {error.strerror}. Choose another") from error


def main(argv):
    """Run the command line. Returns the exit code: 0, or 2 for a mistake of the user's, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
