"""What a checkpoint records about the run that wrote it, so that a resumed run can say what is different."""

from gpt2_numba.data.token_shards import find_shards
from gpt2_numba.parallel.agreement import facts_of_files

# The settings on which the results of a run depend.
_SETTINGS = (
    "seed", "batch_size", "total_batch_tokens", "sequence_length", "max_steps", "schedule", "learning_rate", "warmup_steps",
    "final_lr_fraction", "weight_decay", "skip_loss_z", "skip_norm_z", "overfit_one_batch", "precision", "kernels", "tf32", "gelu_fusion",
    "attention", "master_weights",
)  # fmt: skip
_DATA = {"training data": "train_data", "validation data": "val_data"}


def run_facts(settings, processes):
    """The facts of a run, JSON-serialisable. settings: complete. Raises UserError if a file of the data cannot be read."""
    facts = {name: getattr(settings, name) for name in _SETTINGS} | {"processes": processes}
    for name, field in _DATA.items():
        pattern = getattr(settings, field)
        if pattern is not None and settings.wait_for_shards:
            continue  # not all of them are there
        # The size of each shard and a digest of its two ends, in order: the same files elsewhere are the same data.
        facts[name] = "built-in" if pattern is None else list(facts_of_files(find_shards(pattern)).values())
    return facts


def differences(before, now):
    """What differs between two runs' facts, a list of texts. A fact that one of them lacks is ignored."""
    texts = []
    for name in before.keys() & now.keys():
        if before[name] == now[name]:
            continue
        if name in _DATA:
            texts.append(f"{name}: {_describe(now[name])}, before {_describe(before[name])}")
        else:
            texts.append(f"{name.replace('_', ' ')} {now[name]}, before {before[name]}")
    return sorted(texts)


def _describe(files):
    if isinstance(files, str):
        return files
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"a file of {files[0]}{more}"
