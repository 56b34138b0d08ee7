"""The flags of a training of a tiny model on tokens that mean nothing."""

import numpy as np

from gpt2_numba.data.token_shards import write_shard


def tiny_training(tmp_path):
    """Flags of gpt2_numba.train, apart from the steps. The shards, and the log directory, `log`, are in tmp_path."""
    write_shard(tmp_path / "train.bin", np.random.default_rng(5).integers(0, 11, 400))
    write_shard(tmp_path / "val.bin", np.arange(11))
    flags = f"-i {tmp_path}/train.bin -j {tmp_path}/val.bin -e L=1,NH=1,C=8,V=11 -b 1 -t 4 -d 8 -m 1 -s 0 --device cpu -o {tmp_path}/log"
    return flags.split()
