"""What a checkpoint records about the run that wrote it, so that a resumed run can say what is different."""

from gpt2_numba.data.arriving_shards import Arrivals
from gpt2_numba.data.token_shards import find_shards
from gpt2_numba.errors import UserError
from gpt2_numba.parallel.agreement import facts_of_files

# The settings on which the results of a run depend.
_SETTINGS = (
    "seed", "batch_size", "total_batch_tokens", "sequence_length", "max_steps", "schedule", "learning_rate", "warmup_steps",
    "final_lr_fraction", "weight_decay", "skip_loss_z", "skip_norm_z", "overfit_one_batch", "precision", "kernels", "tf32", "gelu_fusion",
    "attention", "master_weights",
)  # fmt: skip
_DATA = {"training data": "train_data", "validation data": "val_data"}
_BUILT_IN = "built-in"


def run_facts(settings, processes):
    """The facts of a run, JSON-serialisable. settings: complete. Raises UserError if a file of the data cannot be read."""
    facts = {name: getattr(settings, name) for name in _SETTINGS} | {"processes": processes}
    for name, field in _DATA.items():
        pattern = getattr(settings, field)
        facts[name] = _BUILT_IN if pattern is None else _shards(pattern, settings.wait_for_shards)
    return facts


def _shards(pattern, arriving):
    """A text for each shard, in order: its size and a digest of its two ends, so the same files elsewhere are the same data.

    arriving: not all of them are there; their sizes are in the manifest.
    """
    if arriving:
        return [f"{shard.listed.bytes:,} bytes" for shard in Arrivals().find(pattern)]
    return list(facts_of_files(find_shards(pattern)).values())


def differences(before, now):
    """What differs between two runs' facts, a list of texts. A fact that one of them lacks is ignored."""
    texts = []
    for name in before.keys() & now.keys():
        if name in _DATA:
            text = _of_sizes(before[name], now[name]) or _of_contents(before[name], now[name])
            texts += [f"{name}: {text}"] if text else []
        elif before[name] != now[name]:
            texts.append(f"{name.replace('_', ' ')} {now[name]}, before {before[name]}")
    return sorted(texts)


def check_training_data(before, now):
    """Raise UserError if the training data of a resumed run have another size than those of the run that wrote its checkpoint.

    The position in the data then means something else. Data of the same size are only reported, by `differences`.
    """
    name = "training data"
    if name in before.keys() & now.keys() and (text := _of_sizes(before[name], now[name])):
        raise UserError(
            f"the training data must be those of the run that is resumed: {text}. Put the same files back, or start the data over "
            "(--restart-data on)"
        )


def _of_sizes(before, now):
    """How two runs' data differ in their sizes; None if they do not. Data are the texts of _shards, or _BUILT_IN."""
    if not (_are_shards(before) and _are_shards(now) and len(before) == len(now)):
        return None if before == now else f"{_counted(now)}, before {_counted(before)}"
    return _first_different([(_size(one), _size(other)) for one, other in zip(now, before)], lambda one, other: f"{one}, before {other}")


def _of_contents(before, now):
    """How data of the same sizes differ in their contents, as far as both are known; None if they do not."""
    if not (_are_shards(before) and _are_shards(now)):
        return None
    known = [(one, other) if "(" in one and "(" in other else ("", "") for one, other in zip(now, before)]
    return _first_different(known, lambda *_: "other contents, of the same size")


def _first_different(pairs, describe):
    different = [number for number, (one, other) in enumerate(pairs) if one != other]
    if not different:
        return None
    more = f", and {len(different) - 1} more" if len(different) > 1 else ""
    return f"shard {different[0] + 1} of {len(pairs)} has {describe(*pairs[different[0]])}{more}"


def _size(shard):
    return shard.partition(" (")[0]


def _are_shards(data):
    return isinstance(data, list) and all(isinstance(shard, str) for shard in data)


def _counted(data):
    return f"{len(data)} shard{'s' * (len(data) != 1)}" if _are_shards(data) else str(data)
