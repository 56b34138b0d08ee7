"""Data sets on the network that `python -m gpt2_numba.data NAME` knows by name: HUB_SOURCES, a part of the table in sources.py.

Token shards that are ready come as they are (shard_download.py), text is tokenized here while the next file arrives (ArrivingText), and
multiple-choice questions become an evaluation file (evaluation/questions.py).
"""

import hashlib
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2_numba.command_line import user_path
from gpt2_numba.data.evaluation.questions import GPT2_CONTEXT, read_questions, write_questions
from gpt2_numba.data.fetching.hub import Fetch, RemoteFile, check_room, hub_files
from gpt2_numba.data.fetching.shard_download import ReadyShards, fetch_shards
from gpt2_numba.data.making.source import SHARD_OPTIONS, TEXT_OPTIONS, Source
from gpt2_numba.data.making.text_parts import Part, TextOptions, parse_split, part_of_file
from gpt2_numba.data.tokenizers import ENCODINGS, END_OF_TEXT
from gpt2_numba.errors import UserError

GITHUB = "https://raw.githubusercontent.com"
QUESTION_OPTIONS = ("questions", "limit", "longest")
HUB_OPTIONS = ("shards", "text", "ranks") + QUESTION_OPTIONS
KEPT_TEXTS = 2  # files of text that remain on the disk: a job that was broken off may read the latest ones again


@dataclass(frozen=True)
class HubText:
    """Text on the hub to be tokenized here.

    repo, train   the data set, and a pattern of the paths of its training files
    val           a pattern of its validation files; None: there are none
    """

    repo: str
    train: str
    val: str | None = None

    def files(self, count=None):
        """(validation, training): lists of RemoteFile; of the latter the first `count` (None: all)."""
        train = hub_files(self.repo, self.train)
        if count is not None and count > len(train):
            raise UserError(f"--shards must be at most {len(train)}, the text files of {self.repo}, got {count}")
        return hub_files(self.repo, self.val) if self.val else [], train[:count]


HELLASWAG = RemoteFile(
    "hellaswag_val.jsonl",
    f"{GITHUB}/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
    12_246_618,
    "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
)
MMLU = ("cais/mmlu", "all/test-00000-of-00001.parquet")
EVALUATION_FILES = {"hellaswag": "hellaswag_val.bin", "mmlu": "mmlu_test.bin", "mmlu-letters": "mmlu_letters_test.bin"}
TINY_SHAKESPEARE = RemoteFile(
    "tinyshakespeare.txt",
    f"{GITHUB}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    1_115_394,
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
TINY_STORIES = HubText("roneneldan/TinyStories", "TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt")
SHARDS = {
    "fineweb-10B": ReadyShards("kjj0/fineweb10B-gpt2", "fineweb_train_*.bin", "fineweb_val_000000.bin"),
    "fineweb-100B": ReadyShards("chrisdryden/FineWebTokenizedGPT2", "fineweb_train_*.bin", "fineweb_val_000000.bin"),
    "fineweb-edu-10B": ReadyShards("kjj0/finewebedu10B-gpt2", "finewebedu_train_*.bin", "finewebedu_val_000000.bin"),
    "fineweb-edu-100B": ReadyShards("karpathy/fineweb-edu-100B-gpt2-token-shards", "edu_fineweb_train_*.bin", "edu_fineweb_val_000000.bin"),
}


def _shards_or_text(kind, size, purpose):
    """The Source of FineWeb or FineWeb-Edu: its shards or, with --text, its text. kind: as in the data sets' names."""
    return Source(
        purpose,
        fetch=lambda arguments: fetch_ready_shards(f"{kind}-{size}", arguments),
        parts=lambda arguments: text_parts(HubText(f"HuggingFaceFW/{kind}", f"sample/{size}T/*.parquet"), arguments),
        parts_options=("text", "shards") + TEXT_OPTIONS + SHARD_OPTIONS,
        fetch_options=("shards", "ranks"),
    )


HUB_SOURCES = {
    "tinyshakespeare": Source(
        "Shakespeare's plays, 1.1 MB of text",
        parts=lambda arguments: parts_of_files([], [TINY_SHAKESPEARE], arguments, split="blank-line"),
        split="blank-line",
        val_tokens=32768,  # as in llm.c
    ),
    "tinystories": Source(
        "stories in a small child's words (Eldan and Li 2023), 2.2 GB of text",
        parts=lambda arguments: text_parts(TINY_STORIES, arguments, split=END_OF_TEXT),
        split=END_OF_TEXT,
        parts_options=("shards",) + TEXT_OPTIONS + SHARD_OPTIONS,
    ),
    "fineweb-10B": _shards_or_text("fineweb", "10B", "web text (Penedo et al. 2024), 103 shards of 100M GPT-2 tokens"),
    "fineweb-100B": _shards_or_text("fineweb", "100B", "the same, 1,028 shards"),
    "fineweb-edu-10B": _shards_or_text("fineweb-edu", "10B", "educational web text, 99 shards"),
    "fineweb-edu-100B": _shards_or_text("fineweb-edu", "100B", "the same, 1,001 shards"),
    "hellaswag": Source(
        "10,042 questions: which ending is right? (Zellers et al. 2019)",
        fetch=lambda arguments: make_evaluation("hellaswag", arguments),
        fetch_options=QUESTION_OPTIONS,
    ),
    "mmlu": Source(
        "14,042 questions on 57 subjects (Hendrycks et al. 2021); needs pyarrow",
        fetch=lambda arguments: make_evaluation("mmlu", arguments),
        fetch_options=QUESTION_OPTIONS,
    ),
    "mmlu-letters": Source(
        "the same, each choice after a letter, which is the answer",
        fetch=lambda arguments: make_evaluation("mmlu-letters", arguments),
        fetch_options=QUESTION_OPTIONS,
    ),
}
HUB_SOURCES |= {short: replace(HUB_SOURCES[f"{short}-10B"], purpose=f"short for {short}-10B") for short in ("fineweb", "fineweb-edu")}


def add_hub_options(parser):
    """Add the options that only these sources have."""
    group = parser.add_argument_group("data sets on the network")
    group.add_argument(
        "--shards", type=int, metavar="N", help="training shards to fetch, or with --text files; the first ones (default: all)"
    )
    group.add_argument("--text", action="store_true", help="fineweb: tokenize the hub's text here, instead of fetching token shards")
    group.add_argument(
        "--ranks",
        type=int,
        default=1,
        metavar="N",
        help="processes that will train: shards come in the order in which they need them (default: 1)",
    )
    group.add_argument("--questions", type=user_path, metavar="FILE", help="hellaswag, mmlu: take the questions of this file")
    group.add_argument("--limit", type=int, metavar="N", help="hellaswag, mmlu: use the first N questions (default: all)")
    group.add_argument(
        "--longest", type=int, default=GPT2_CONTEXT, metavar="TOKENS",
        help=f"hellaswag, mmlu: leave out questions that need more tokens, the model's -t (default: {GPT2_CONTEXT})",
    )  # fmt: skip


def check_hub_options(arguments):
    """Raise UserError if a value of add_hub_options is not possible."""
    for name in ("shards", "ranks", "limit", "longest"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}; omit it for the default")


# --- Shards ---


def fetch_ready_shards(name, arguments):
    """Fetch the token shards of SHARDS[name] as the command line asks."""
    check_hub_options(arguments)
    if arguments.tokenizer not in (None, "gpt2"):
        raise UserError(f"{name} has shards of GPT-2's tokens, got --tokenizer {arguments.tokenizer}: add --text to tokenize its text here")
    command = f"python -m gpt2_numba.data {shlex.join(sys.argv[1:])}"
    paths = fetch_shards(SHARDS[name], arguments.name or name, arguments.out, arguments.shards, arguments.ranks, command)
    print(f"{len(paths)} shards are in {arguments.out}")


# --- Text ---


def text_parts(text, arguments, split="file"):
    """The parts of a HubText, each of which is downloaded when it is read."""
    check_hub_options(arguments)
    return parts_of_files(*text.files(arguments.shards), arguments, split)


def parts_of_files(val, train, arguments, split="file"):
    """Parts of RemoteFiles for validation (none: a share of the others) and training. Raises UserError if the disk is too small."""
    directory = Path(arguments.out) / "downloads"
    files = [(file, True) for file in val] + [(file, False if val else None) for file in train]
    largest = sorted(((directory / local_name(file), file.size) for file, _ in files), key=lambda pair: pair[1])[-KEPT_TEXTS - 1 :]
    check_room(directory, largest)
    options = TextOptions(split=parse_split(arguments.split or split), field=arguments.field, replace_invalid=arguments.replace_invalid)
    parts = [ArrivingText(file, directory, options, validation) for file, validation in files]
    for index, part in enumerate(parts):
        part.following = parts[index + 1] if index + 1 < len(parts) else None
        part.finished = parts[index - KEPT_TEXTS] if index >= KEPT_TEXTS else None
    return parts


class ArrivingText(Part):
    """A part of text whose file is downloaded when its first unit is wanted, or while the part before it is tokenized.

    following, finished   the next part, and one whose file can be deleted once all of this one has been read; None: there is none
    """

    following = finished = None

    def __init__(self, file, directory, options, validation=None):
        """file: a RemoteFile of known size. directory: where it goes. options, validation: as for any part."""
        self.name, self.size, self.options, self.validation = file.name, file.size, options, validation
        self.path = directory / local_name(file)
        self.paths = [self.path]
        self.stamp = hashlib.sha256(repr(file[1:]).encode()).hexdigest()
        self._file, self._fetch = file, None

    def fetch(self):
        """Begin the download, if it has not begun."""
        self._fetch = self._fetch or Fetch(self._file, self.path)

    def units(self):
        self.fetch()
        self._fetch.wait()
        if self.following:
            self.following.fetch()
        yield from part_of_file(self.path, self.options, self.validation).units()
        if self.finished:
            self.finished.path.unlink(missing_ok=True)


def local_name(file):
    """The name here of a RemoteFile."""
    return file.name.replace("/", "_")


# --- Questions ---


def make_evaluation(name, arguments):
    """Make the evaluation file of "hellaswag", "mmlu" or "mmlu-letters", in llm.c's format."""
    check_hub_options(arguments)
    out = Path(arguments.out) / (EVALUATION_FILES[name] if arguments.name in (None, name) else f"{arguments.name}.bin")
    encoding = ENCODINGS[arguments.tokenizer or "gpt2"]()
    path = arguments.questions or _fetch_questions(name, Path(arguments.out))
    count, left_out, longest = write_questions(out, read_questions(path, name, arguments.limit), encoding, arguments.longest)
    omitted = f"; {left_out:,} that need more than {arguments.longest} are left out" if left_out else ""
    print(f"{out}: {count:,} questions, the longest of {longest} tokens{omitted}")
    print(f"evaluate while training: python -m gpt2_numba.train -h 1 --eval-file {shlex.quote(str(out))} ...")


def _fetch_questions(name, directory):
    file = HELLASWAG if name == "hellaswag" else hub_files(*MMLU)[0]
    path = directory / local_name(file)
    Fetch(file, path).wait()
    return path
