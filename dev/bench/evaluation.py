"""How fast are multiple-choice questions answered, batched by length and in the file's order, and do both choose the same endings?

    python -m dev.bench.evaluation [MODEL] [-e d12] [--precision bf16] [--questions FILE.bin] [--limit N] [--out FILE.json]

Without MODEL the weights of -e are random, which serves for timing. Without --questions they are made: 10,042 with about the lengths of
HellaSwag's in GPT-2's tokens. A context is a stretch of text, the right ending what follows it there, the others are from elsewhere.

In the file's order, which is llm.c's way, every row is padded to T tokens. Both ways are run once before they are timed, on a few batches,
so that kernels are compiled and graphs recorded.
"""

import datetime
import itertools
import json
import time

import numpy as np

from dev.bench.machine import commit, gpus, versions
from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.config import GPT2_VOCAB_SIZE, parameter_shapes, parse_descriptor
from gpt2_numba.data.builtin_corpus import builtin_corpus
from gpt2_numba.data.evaluation.answers import Answers
from gpt2_numba.data.evaluation.multiple_choice import Example, read_share
from gpt2_numba.data.evaluation.rows_by_length import batches_by_length, padded_share
from gpt2_numba.data.tokenizers import BYTE_VOCAB_SIZE
from gpt2_numba.evaluate import evaluate_questions
from gpt2_numba.evaluation_model import EvaluationModel
from gpt2_numba.gpu.backend import device_name, real_gpu
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.named_model import open_source
from gpt2_numba.options import Options
from gpt2_numba.progress import Progress
from gpt2_numba.training.settings import default_gelu_fusion

QUESTIONS, ENDINGS = 10_042, 4  # HellaSwag's validation questions: 3,243 about videos (ActivityNet), 6,799 from WikiHow
FROM_VIDEOS = 3_243
# (context, ending) in GPT-2's tokens: mean and standard deviation. Estimates: captions are a sentence or two, WikiHow's steps three.
VIDEO_LENGTHS, WIKIHOW_LENGTHS = ((28, 10), (14, 6)), ((78, 20), (32, 12))
LONGEST = 170  # tokens of a row
SAME_LENGTH = 4  # tokens by which the endings of a question differ in length, at most


def hellaswag_shaped(V, count=QUESTIONS, seed=0):
    """`count` Examples of about HellaSwag's lengths, for a vocabulary of V: of the built-in corpus if tokens are bytes, otherwise random.

    Random ones have the frequencies of words, 1 / rank.
    """
    random = np.random.default_rng(seed)
    if V == BYTE_VOCAB_SIZE:
        text = builtin_corpus()[1]
        text = text[text < BYTE_VOCAB_SIZE - 1]
    else:
        rank = np.arange(1, V)
        text = random.choice(V - 1, 1 << 20, p=1 / rank / np.sum(1 / rank)).astype(np.uint16)

    def length(mean, deviation, most):
        return int(np.clip(random.normal(mean, deviation), 3, most))

    examples = []
    for index in range(count):
        context, ending = VIDEO_LENGTHS if index < count * FROM_VIDEOS // QUESTIONS else WIKIHOW_LENGTHS
        context = length(*context, LONGEST // 2 + 20)
        start, ending = int(random.integers(len(text) - LONGEST)), length(*ending, LONGEST - context - SAME_LENGTH)
        lengths = ending + random.integers(0, SAME_LENGTH, ENDINGS)
        starts = random.integers(len(text) - LONGEST, size=ENDINGS)
        label = int(random.integers(ENDINGS))
        starts[label] = start + context
        endings = [text[s : s + n] for s, n in zip(starts.tolist(), lengths.tolist())]
        examples.append(Example(label, text[start : start + context], endings))
    return examples


def answer_in_order(model, answers, most_batches=None):
    """Fill Answers in the file's order, in batches of rows of T tokens: llm.c's way."""
    as_long = np.full(len(answers.rows), model.T)  # as if all rows were: nothing is sorted, and each is padded to T
    with Progress("in the file's order", len(as_long), "endings") as progress:
        for batch in itertools.islice(batches_by_length(as_long, answers.tokens, model.batch_tokens, model.T), most_batches):
            model.evaluate(batch.inputs, batch.targets)
            answers.add(batch.rows, model.losses_to_host())
            progress.advance(len(batch.rows))


def parse(argv):
    """Parse the command line."""
    parser = Parser(prog="python -m dev.bench.evaluation", doc=__doc__)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="as for python -m gpt2_numba.evaluate (default: random weights)")
    parser.add_argument("-e", "--descriptor", default="d12", help="d12, d48 or sizes, for random weights (default d12)")
    parser.add_argument("-b", "--batch-tokens", type=int, metavar="N", help="tokens of a batch (default: as python -m gpt2_numba.evaluate)")
    parser.add_argument(
        "-t", "--sequence-length", type=int, metavar="T", help="to which the file's order pads (default: the model's longest)"
    )
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="default: bf16 on a GPU, otherwise fp32")
    parser.add_argument("--tf32", type=int, choices=(0, 1), default=0, help="fp32 on a GPU: products in TF32 (default 0)")
    parser.add_argument("--questions", type=user_path, metavar="FILE", help="an evaluation file (default: made)")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N questions (default: all)")
    parser.add_argument("--way", choices=("by-length", "in-order", "both"), default="both", help="what to time (default both)")
    parser.add_argument("--out", type=user_path, help="also write the result to this file, as JSON")
    return parser.parse_args(argv)


def run(argv):
    """Measure as the command line says."""
    settings = parse(argv)
    source = open_source(settings.model) if settings.model else None
    config = source.config if source else parse_descriptor(settings.descriptor, default_T=1024, default_V=GPT2_VOCAB_SIZE)
    device, T = "gpu" if real_gpu() else "cpu", settings.sequence_length or config.max_T
    precision = settings.precision or ("bf16" if device == "gpu" else "fp32")
    options = Options(device=device, precision=precision, tf32=bool(settings.tf32), gelu_fusion=default_gelu_fusion(precision))
    model = EvaluationModel(config, T, options, settings.batch_tokens)
    source.load(model) if source else model.load_pieces(draw_initial_weights(config, parameter_shapes(config), 42))

    examples = read_share(settings.questions, T, vocab_size=config.V) if settings.questions else hellaswag_shaped(config.V)
    answers = Answers(examples[: settings.limit])

    result = {
        "command": "python -m dev.bench.evaluation " + " ".join(argv), "date": datetime.date.today().isoformat(), "gpu": gpus(),
        "commit": commit(), "versions": versions(), "model": str(config), "precision": precision, "T": T,
        "batch_tokens": model.batch_tokens,
        "questions": len(answers.examples), "tokens": int(answers.lengths.sum()), "longest_row": int(answers.lengths.max()),
        "memory_bytes": model.arena.nbytes,
    }  # fmt: skip
    where = device_name() if device == "gpu" else "CPU"
    sizes = f"{len(answers.examples):,} questions, {result['tokens']:,} tokens, batches of {model.batch_tokens:,}"
    print(f"{config}, {precision}, {where}: {sizes}")
    if settings.way != "in-order":
        for _ in range(2):  # compiled, recorded
            evaluate_questions(model, Answers(_some_of_each_length(answers)), "warming up")
        begun = time.perf_counter()
        evaluate_questions(model, answers, "by length")
        _report(result, "by length", time.perf_counter() - begun, padded_share(answers.lengths, model.batch_tokens, T))
        result["by token"], result["by sum"] = str(answers.score()), str(answers.score(1))
        print(f"  by token {result['by token']}, by sum {result['by sum']}")
    if settings.way != "by-length":
        in_order = Answers(answers.examples)
        answer_in_order(model, in_order, most_batches=3)
        begun = time.perf_counter()
        answer_in_order(model, in_order)
        _report(result, "in order", time.perf_counter() - begun, 1 - result["tokens"] / (len(in_order.rows) * T))
    if settings.way == "both":
        result["different choices"] = sum(a != b for a, b in zip(answers.choices(), in_order.choices()))
        result["in order, by token"] = str(in_order.score())
        print(f"  by token, in order: {in_order.score()}\n  other endings chosen: {result['different choices']} of {result['questions']:,}")
    if settings.out:
        settings.out.write_text(json.dumps(result, indent=1) + "\n")


def _some_of_each_length(answers):
    """Examples with the lengths of all, an eighth of them, so that all shapes occur."""
    longest = np.array([max(len(e.context) + len(ending) for ending in e.endings) for e in answers.examples])
    return [answers.examples[i] for i in np.argsort(longest, kind="stable")[::8].tolist()]


def _report(result, way, seconds, padding):
    count = result["questions"]
    result[way] = {"seconds": round(seconds, 2), "questions_per_second": round(count / seconds, 1), "padding": round(float(padding), 3)}
    print(f"{way}: {seconds:.1f} s, {count / seconds:,.0f} questions/s; {100 * padding:.0f} % of the tokens are padding", flush=True)


def main(argv):
    """The command line. Returns the exit code: 2 for a user error, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
