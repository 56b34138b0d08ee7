"""Ready-made token shards from the hub: fetched in the order in which a run needs them, which may begin with the first."""

import glob
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2_numba.data.arriving_shards import Arrivals
from gpt2_numba.data.fetching.download import arrived_bytes, download
from gpt2_numba.data.fetching.hub import check_room, hub_files
from gpt2_numba.data.file_header import HEADER_BYTES
from gpt2_numba.data.loader import permute
from gpt2_numba.data.making.training_command import training_command
from gpt2_numba.data.manifest import MANIFEST, ListedShard, SignOfLife, read_manifest, write_manifest
from gpt2_numba.data.token_shards import Shard
from gpt2_numba.data.tokenizer_record import record_tokenizer
from gpt2_numba.errors import UserError
from gpt2_numba.progress import Progress

TRAINER_SEED = 42  # of the trainer's order of shards, as in llm.c; rank r adds r


@dataclass(frozen=True)
class ReadyShards:
    """Token shards on the hub, made with GPT-2's tokenizer, in llm.c's format, usually of 100M tokens.

    repo    the data set
    train   a pattern of the names of its training shards; the first ones are fetched, in the order of their names
    val     the name of its validation shard
    """

    repo: str
    train: str
    val: str


def fetch_shards(source, name, directory, count=None, ranks=1, command=""):
    """Fetch the validation shard and the first `count` training shards (None: all) of a ReadyShards. Returns their paths, sorted.

    name       of the files here: NAME_val_000000.bin, NAME_train_000001.bin and so on, with NAME_manifest.json (manifest.py)
    ranks      the processes that will train: shards are fetched in the order in which these open them
    command    the command line that goes on after a failure, for the message of a run that waits

    What is there already is not fetched again. Raises UserError as `download` does, or if the disk is too small.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with SignOfLife(directory / name, command):
            shards = list_shards(source, name, directory, count)
            check_room(directory, [(directory / shard.name, shard.bytes) for shard in shards])
            write_manifest(directory / name, shards)
            record_tokenizer(directory / name, "gpt2", source=source.repo)
            print_how_to_train(directory / name)
            _fetch_listed(name, directory, order_of_need(shards, ranks))
    except OSError as error:
        raise UserError(f"--out {directory}: must be a directory that can be written: {error.strerror}. Choose another") from error
    return sorted(directory / shard.name for shard in shards)


def list_shards(source, name, directory, count=None):
    """The ListedShards to fetch, named as here; those of an earlier manifest whose files are there stay in the list."""
    train, val = hub_files(source.repo, source.train), hub_files(source.repo, source.val)
    if count is not None and count > len(train):
        raise UserError(f"--shards must be at most {len(train)}, of which {source.repo} consists, got {count}")
    shards = {shard.name: shard for shard in map(lambda file: _as_listed(file, name), [*val, *train[:count]])}
    earlier = Path(directory) / f"{name}{MANIFEST}"
    for shard in read_manifest(earlier) if earlier.exists() else []:
        if (Path(directory) / shard.name).exists():
            shards.setdefault(shard.name, shard)
    return sorted(shards.values(), key=lambda shard: shard.name)


def _as_listed(file, name):
    """The ListedShard of a RemoteFile. Its number of tokens follows from its size."""
    tokens, odd = divmod(file.size - HEADER_BYTES, 2)
    found = re.search(r"_((?:train|val)_\d+\.bin)$", file.name)
    if tokens < 1 or odd or not found:
        raise UserError(f"{file.url}: must be a token shard, and has {file.size} bytes and the name {file.name}: the data set has changed")
    return ListedShard(f"{name}_{found[1]}", tokens, file.size, file.sha256, file.url)


def order_of_need(shards, ranks=1, seed=TRAINER_SEED):
    """The ListedShards in the order in which a run of `ranks` processes opens them: validation first, then as DataLoader shuffles them."""
    shards = sorted(shards, key=lambda shard: shard.name)
    train = [shard for shard in shards if "_train_" in shard.name]
    orders = []
    for rank in range(ranks):
        order = np.arange(len(train), dtype=np.int32)
        permute(order, np.random.RandomState(seed + rank))
        orders.append(order.tolist())
    needed = dict.fromkeys(shard for by_rank in zip(*orders) for shard in by_rank)  # the first of each rank, then the second of each
    return [shard for shard in shards if shard not in train] + [train[shard] for shard in needed]


def _fetch_listed(name, directory, shards):
    before = sum(arrived_bytes(directory / shard.name, shard.bytes) for shard in shards)
    with Progress(f"downloading {name}", total=sum(shard.bytes for shard in shards), unit="B", done=before) as progress:
        for number, shard in enumerate(shards, start=1):
            progress.advance(0, f"shard {number} of {len(shards)}")
            path = download(shard.url, directory / shard.name, shard.bytes, shard.sha256, report=progress.advance)
            if len(Shard(path)) != shard.tokens:
                raise UserError(f"{path}: its header must say {shard.tokens} tokens, and says {len(Shard(path))}: the data set has changed")


def print_how_to_train(stem):
    """Print the command that trains on the shards of STEM_manifest.json, which may begin at once."""
    find = Arrivals().find
    train, val = (find(f"{glob.escape(str(stem))}_{split}_*.bin") for split in ("train", "val"))
    print(f"train while they arrive: {training_command(stem, train, val, 'gpt2')} --wait-for-shards on", flush=True)
