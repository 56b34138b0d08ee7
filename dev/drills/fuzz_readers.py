"""The readers that the fuzz drill tries: how to make a right file for each, and how its inputs are generated."""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from dev.drills.questions import questions_as_json_lines, write_questions
from dev.drills.training import FLAGS, B, T, V, train
from gpt2_numba.config import parameter_shapes, parse_descriptor
from gpt2_numba.data.evaluation.multiple_choice import read_share
from gpt2_numba.data.evaluation.questions import read_questions
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.training.checkpoint import read_outliers
from gpt2_numba.training.debug_state_file import DebugState, read_debug_state, write_debug_state
from gpt2_numba.training.log import read_main_log
from gpt2_numba.training.model_file import read_model_file
from gpt2_numba.training.resume import open_newest
from gpt2_numba.training.run_log import read_run_log
from gpt2_numba.training.state_file import read_state_file

CONFIG = parse_descriptor(FLAGS["-e"])
# Numbers at which readers go wrong.
NUMBERS = [0, 1, 2, 3, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**31 - 1, -1, -2, -(2**31)]
WORDS = [
    "NaN", "Infinity", "-inf", "1e400", "0x1.8p+1", "0x1p+9999", "[", "{", "}", "]", '"', "null", "9" * 5000, "\0", "\ufeff", "\n",
    "s:", "trl:", ":", " ",
]  # fmt: skip


@functools.cache
def _run():
    """The directory of a finished training, kept until the end of this process."""
    kept = tempfile.TemporaryDirectory(prefix="drill_")
    train(Path(kept.name), {"-x": 2})
    return kept


def _log():
    return Path(_run().name) / "log"


@st.composite
def damaged(draw, original):
    """Bytes of a file with a few changes, most of them in its first numbers; or arbitrary ones."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=3000))
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.one_of(st.integers(0, 40).map(lambda n: 4 * n), st.integers(0, max(0, len(data) - 1))))
        how = draw(st.sampled_from(("number", "byte", "cut", "insert", "word")))
        if how == "number":
            data[place : place + 4] = (draw(st.sampled_from(NUMBERS)) % 2**32).to_bytes(4, "little")
        elif how == "byte":
            data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif how == "cut":
            del data[place:]
        elif how == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=9))
        else:
            data[place:place] = draw(st.sampled_from(WORDS)).encode()
    return bytes(data)


@st.composite
def damaged_text(draw, original):
    """Bytes of a text file with a few words put in or left out; or arbitrary text."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.text(max_size=300)).encode("utf-8", "surrogatepass")
    text = original
    for _ in range(draw(st.integers(1, 4))):
        place, end = sorted(draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        end = draw(st.sampled_from((place, min(place + 1, end), end)))
        text = text[:place] + draw(st.one_of(st.just(""), st.sampled_from(WORDS), st.text(max_size=9))) + text[end:]
    return text.encode("utf-8", "surrogatepass")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(("loss", "norm", "ctx", "label", "endings", "x")), inner),
    max_leaves=12,
)


def json_text(original):
    """Damaged JSON, or right JSON of another structure."""
    return st.one_of(
        damaged_text(original), JSON_VALUES.map(lambda value: json.dumps(value).encode()), st.integers(1, 10**5).map(lambda n: b"[" * n)
    )


def targets():
    """(name, strategy of a file's bytes, use): use(directory, those bytes, or a path) reads them."""
    right = {name: (_log() / name).read_bytes() for name in ("model_00000002.bin", "state_00000002_00000.bin", "outliers_00000002.json",
                                                             "DONE_00000002", "main.log", "run.jsonl")}  # fmt: skip
    return [
        ("a model file", damaged(right["model_00000002.bin"]), _reads(lambda path: np.sum(read_model_file(path)[1]))),
        ("a state file", damaged(right["state_00000002_00000.bin"]), _reads(lambda path: np.sum(read_state_file(path, CONFIG).m))),
        ("outliers", json_text(right["outliers_00000002.json"].decode()), _reads(read_outliers)),
        ("DONE", json_text(right["DONE_00000002"].decode()), _resumes),
        ("a token shard", damaged(_made(_shard)), _reads(_batches)),
        ("questions", damaged(_made(write_questions)), _reads(lambda path: read_share(path, T, vocab_size=V))),
        (
            "questions as JSON lines",
            json_text(questions_as_json_lines().decode()),
            _reads(lambda path: list(read_questions(path, "hellaswag"))),
        ),
        ("main.log", damaged_text(right["main.log"].decode()), _reads(read_main_log)),
        ("run.jsonl", json_text(right["run.jsonl"].decode()), _run_log),
        ("a debug state", damaged(_made(_debug_state)), _reads(lambda path: read_debug_state(path, CONFIG, parameter_shapes(CONFIG)))),
    ]


def _reads(read):
    """use for a reader of a path."""

    def use(directory, content):
        path = content
        if isinstance(content, bytes):
            path = directory / "input.bin"
            path.write_bytes(content)
        read(path)

    return use


def _resumes(directory, content):
    """A checkpoint whose DONE has this content, or is this path."""
    if isinstance(content, Path):
        return open_newest(content)
    shutil.copytree(_log(), directory / "log")
    (directory / "log" / "DONE_00000002").write_bytes(content)
    open_newest(directory / "log")


def _run_log(directory, content):
    """A log directory whose run.jsonl has this content, or is this path."""
    if isinstance(content, Path):
        (directory / "run.jsonl").symlink_to(content)
    else:
        (directory / "run.jsonl").write_bytes(content)
    read_run_log(directory)


def _batches(path):
    loader = DataLoader([path], B, T, shuffle=True, vocab_size=V)
    for _ in range(3):
        loader.next_batch()


def _made(write):
    """The bytes of the file that `write` writes."""
    with tempfile.TemporaryDirectory(prefix="drill_") as directory:
        write(Path(directory) / "file")
        return (Path(directory) / "file").read_bytes()


def _shard(path):
    write_shard(path, np.arange(6 * B * T + 1) % V)


def _debug_state(path):
    shapes, tokens = parameter_shapes(CONFIG), np.zeros((1, T), np.int32)
    gradients = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    write_debug_state(path, CONFIG, shapes, DebugState(tokens, tokens, np.ones((1, T, V), np.float32), 1.0, gradients))
