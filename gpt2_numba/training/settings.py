"""The settings of a training run and the command line that sets them.

Each field of `Settings` is one flag, declared with its short form (llm.c's), its rule and its help; the long form is the field's name. A
flag that is not given is None; `with_defaults` then fills in llm.c's value or, on the built-in corpus, one that suits the corpus and the
device. The help text is generated from the same declarations.
"""

import argparse
import dataclasses
import difflib
import importlib.util
import math
import os
from dataclasses import dataclass

from gpt2_numba.errors import UserError
from gpt2_numba.training.schedules import SCHEDULES
from gpt2_numba.training.tracking import TRACKERS

MODEL_HELP = """\
model descriptors (-e):
  d6 d12 d24 d36 d48 d60 d72 d84     GPT-2 with that many layers; d12 is GPT-2 124M, d48 GPT-2 1558M
  gpt2:dX                            the same, for each X above
  gpt3:cX                            GPT-3 with X channels: 384 768 1024 1536 2048 2560 4096 12288
  L=4,NH=4,C=128,T=128,V=257         any other size: layers, heads, channels (a multiple of the heads), longest context
                                     (tokens), vocabulary size. T and V may be omitted: T is then the sequence length
                                     (-t), V the tokenizer's vocabulary size. In memory V is rounded up to a multiple of 128

models to start from (-e):
  FILE.bin                           a model file of a checkpoint, ours or llm.c's
  gpt2 gpt2-medium gpt2-large        GPT-2 as published, from Hugging Face's cache, or downloaded into it
  gpt2-xl
  OWNER/NAME                         any other GPT-2 on Hugging Face's hub
  DIR                                a folder with config.json and weights of a GPT2LMHeadModel

examples:
  python -m gpt2_numba.train                                          built-in corpus, no network, no GPU needed
  python -m gpt2_numba.train -i 'data/*_train_*.bin' -j 'data/*_val_*.bin' -e d12 -b 64 -d 524288 -l 0.0006 -u 700
"""


LARGEST = 2**31 - 1  # llm.c's flags and most of its files have integers of 32 bits

# --- Rules: each converts the text of a value to the value, or raises ValueError with the rule that the text breaks. ---


def _text(text):
    if not text:
        raise ValueError("a non-empty string")
    return text


def _path(text):
    """Rule: a path or a pattern of paths. `~` is a home directory also where the shell leaves it alone, as in -o=~/log."""
    path = os.path.expanduser(_text(text))
    if max(len(os.fsencode(name)) for name in path.split(os.sep)) > 255:
        raise ValueError("a path whose names have at most 255 bytes")
    return path


def _name_or_path(text):
    return os.path.expanduser(_text(text))


def _integer(minimum, maximum=None, or_value=None):
    """Rule: an integer from minimum to maximum, by default LARGEST, or the one special value or_value."""
    rule = f"an integer of at least {minimum}" if maximum is None else f"an integer from {minimum} to {maximum}"
    if or_value is not None:
        rule += f", or {or_value}"

    def convert(text):
        if maximum is None and len(text) > 12 and text.isdecimal():  # int() refuses thousands of digits
            raise ValueError(f"an integer of at most {LARGEST}")
        try:
            value = int(text)
        except ValueError:
            raise ValueError(rule) from None
        if maximum is None and value > LARGEST:
            raise ValueError(f"an integer of at most {LARGEST}")
        in_range = minimum <= value and (maximum is None or value <= maximum)
        if not in_range and value != or_value:
            raise ValueError(rule)
        return value

    return convert


def _number(minimum, maximum=math.inf):
    """Rule: a finite number from minimum to maximum."""
    rule = f"a number of at least {minimum}" if maximum == math.inf else f"a number from {minimum} to {maximum}"

    def convert(text):
        try:
            value = float(text)
        except ValueError:
            raise ValueError(rule) from None
        if not (math.isfinite(value) and minimum <= value <= maximum):
            raise ValueError(rule)
        return value

    return convert


def _one_of(*words):
    """Rule: one of the given words."""

    def convert(text):
        if text not in words:
            raise ValueError("one of " + ", ".join(words))
        return text

    return convert


def _or_word(word, convert):
    """Rule: one special word, or a value that `convert` accepts."""

    def convert_or_word(text):
        if text == word:
            return word
        try:
            return convert(text)
        except ValueError as rule:
            raise ValueError(f"{rule}, or {word}") from None

    return convert_or_word


def _installed(*packages):
    """Rule: one of the given packages, installed."""
    one_of = _one_of(*packages)

    def convert(text):
        if importlib.util.find_spec(one_of(text)) is None:
            raise ValueError(f"a package that is installed (pip install {text}), or left out")
        return text

    return convert


def _switch(text):
    if text not in ("0", "1"):
        raise ValueError("0 (off) or 1 (on)")
    return text == "1"


def _on_off(text):
    if text not in ("on", "off"):
        raise ValueError("on or off")
    return text == "on"


# --- The settings ---


def _setting(short, group, metavar, convert, help_text, unset=None):
    """One field of Settings, with what the command line needs to know about it.

    short    the short flag, or None; the long one is derived from the field's name
    convert  function from the text of a value to the value; raises ValueError with the rule
    unset    how the help describes a default of None
    """
    return dataclasses.field(
        default=None, metadata={"short": short, "group": group, "metavar": metavar, "convert": convert, "help": help_text, "unset": unset}
    )


@dataclass(frozen=True)
class Settings:
    """All settings of a run; None means "not given". Sizes are in tokens, losses in nats per token."""

    train_data: str | None = _setting(
        "-i",
        "data",
        "PATTERN",
        _path,
        "token shards to train on: a path or a quoted pattern; requires -j",
        unset="the built-in corpus",
    )
    val_data: str | None = _setting("-j", "data", "PATTERN", _path, "token shards for validation; requires -i", unset="the built-in corpus")
    wait_for_shards: bool | None = _setting(
        None,
        "data",
        "on|off",
        _on_off,
        "on = train while python -m gpt2_numba.data is still fetching the shards: order and sizes come from its manifest, and a shard that "
        "is missing is waited for; the bits are the same",
    )

    model: str | None = _setting(
        "-e",
        "model",
        "MODEL",
        _name_or_path,
        "model descriptor, or a model to start from: FILE.bin, gpt2, or another of Hugging Face's (see below)",
    )
    recompute: int | None = _setting(
        "-r",
        "model",
        "LEVEL",
        _integer(0, 2),
        "what the backward pass recomputes instead of storing: 0 nothing (fastest, most memory), 1 GELU, 2 GELU and LayerNorm",
    )
    gelu_fusion: int | None = _setting(
        "-ge",
        "model",
        "LEVEL",
        _integer(0, 2),
        "GELU fused into cuBLASLt's epilogue: 0 never, 1 in the forward pass, 2 in both passes; no effect on a CPU",
        unset="2 in bf16, 0 in fp32, where cuBLASLt's GELU is accurate to only 11 bits",
    )
    seed: int | None = _setting(None, "model", "N", _integer(0, 2**32 - 1), "seed of the initial weights")

    batch_size: int | str | None = _setting(
        "-b",
        "batch",
        "B",
        _or_word("auto", _integer(1)),
        "micro-batch: sequences per forward pass of a process; auto = the largest that fits into GPU memory and divides -d",
    )
    sequence_length: int | None = _setting("-t", "batch", "T", _integer(1), "tokens per sequence")
    total_batch_tokens: int | None = _setting(
        "-d",
        "batch",
        "TOKENS",
        _integer(1),
        "tokens per update, a multiple of B * T * processes; above that, gradients are accumulated over several micro-batches",
        unset="B * T * processes",
    )

    max_steps: int | None = _setting(
        "-x", "optimisation", "STEPS", _integer(1, or_value=-1), "number of updates; -1 = one pass over the data"
    )
    schedule: str | None = _setting("-k", "optimisation", "NAME", _one_of(*SCHEDULES), "learning-rate schedule: " + ", ".join(SCHEDULES))
    learning_rate: float | None = _setting("-l", "optimisation", "RATE", _number(0), "peak learning rate")
    warmup_steps: int | None = _setting("-u", "optimisation", "STEPS", _integer(0), "steps over which the learning rate rises to its peak")
    final_lr_fraction: float | None = _setting(
        "-q", "optimisation", "FRACTION", _number(0, 1), "final learning rate as a fraction of the peak"
    )
    weight_decay: float | None = _setting(
        "-c", "optimisation", "RATE", _number(0), "AdamW's weight decay, applied to matrices and embeddings only"
    )
    skip_loss_z: float | None = _setting(
        "-sl", "optimisation", "Z", _number(0), "skip updates whose loss has a z-score above this; 0 = off"
    )
    skip_norm_z: float | None = _setting(
        "-sg", "optimisation", "Z", _number(0), "skip updates whose gradient norm has a z-score above this; 0 = off"
    )
    overfit_one_batch: bool | None = _setting(
        "-a",
        "optimisation",
        "0|1",
        _switch,
        "1 = train on a single batch of the validation data over and over, to check that the loss falls to nearly 0",
    )

    val_every: int | None = _setting("-v", "progress", "STEPS", _integer(0), "validate every STEPS steps and at the end; 0 = off")
    val_batches: int | None = _setting("-m", "progress", "N", _integer(1), "batches of B * T tokens per validation")
    hellaswag: bool | None = _setting(
        "-h", "progress", "0|1", _switch, "1 = measure accuracy on multiple-choice questions at every validation but the first"
    )
    eval_file: str | None = _setting(
        None, "progress", "FILE", _path, "the questions for -h, a file made by python -m gpt2_numba.data hellaswag or by llm.c"
    )
    sample_every: int | None = _setting("-s", "progress", "STEPS", _integer(0), "print a sample every STEPS steps and at the end; 0 = off")
    sample_tokens: int | None = _setting("-g", "progress", "TOKENS", _integer(1), "tokens per sample")
    log_dir: str | None = _setting(
        "-o", "progress", "DIR", _path, "directory for main.log, run.jsonl, the loss plot and the checkpoints", unset="none"
    )
    stats_every: int | None = _setting(
        None,
        "progress",
        "STEPS",
        _integer(0),
        "log statistics of every layer's gradients and activations every STEPS steps, for the plots; 0 = off",
    )
    track: str | None = _setting(
        None,
        "progress",
        "PACKAGE",
        _installed(*TRACKERS),
        f"send the results to {', '.join(TRACKERS)} as well, whichever is named and installed",
        unset="none",
    )
    gpu_info_every: int | None = _setting(
        "-lg",
        "progress",
        "STEPS",
        _integer(1, or_value=-1),
        "print the GPU's clock, power, temperature and load every STEPS steps; -1 = off",
    )

    checkpoint_every: int | None = _setting("-n", "checkpoints", "STEPS", _integer(0), "write a checkpoint every STEPS steps; 0 = off")
    final_checkpoint: bool | None = _setting(
        None, "checkpoints", "on|off", _on_off, "on = write a checkpoint at the end of the run, too, if there is a log directory"
    )
    keep_checkpoints: int | None = _setting("-nk", "checkpoints", "N", _integer(0), "keep only the N newest checkpoints; 0 = all")
    major_checkpoint_every: int | None = _setting(
        "-nm", "checkpoints", "STEPS", _integer(0), "never delete a checkpoint whose step is a multiple of STEPS; 0 = off"
    )
    resume: bool | None = _setting(
        "-y", "checkpoints", "0|1", _switch, "1 = resume from the newest checkpoint in the log directory, if there is one"
    )
    restart_data: bool | None = _setting(
        None,
        "checkpoints",
        "on|off",
        _on_off,
        "on = a resumed run starts its data over, for instance with other shards; off = it continues where the checkpoint was",
    )

    device: str | None = _setting(None, "machine", "NAME", _one_of("auto", "cpu", "gpu"), "auto (the GPU if there is one), cpu or gpu")
    kernels: str | None = _setting(
        None,
        "machine",
        "NAME",
        _name_or_path,
        "kernels on a GPU or in the simulator: fast (needs compute capability 8.0 or later), plain (written to be read; fp32, any GPU), "
        "plain,cublaslt (plain, but with NVIDIA's library for matrix products), FILE.py (your own layer functions, and plain ones for the "
        "rest), or auto (fast if the GPU supports it, else plain,cublaslt)",
    )
    precision: str | None = _setting(
        None,
        "machine",
        "NAME",
        _one_of("auto", "fp32", "bf16"),
        "type of weights, activations and gradients: auto (bf16 if the GPU supports it, else fp32), fp32 or bf16",
    )
    tf32: bool | None = _setting(
        "-f", "machine", "0|1", _switch, "1 = fp32 matrix products on a GPU may round their inputs to TF32, which is faster"
    )
    matmul_search: bool | None = _setting(
        None,
        "machine",
        "on|off",
        _on_off,
        "on = time cuBLASLt's algorithms for each matrix product (a few seconds in all) and use the fastest; the choice is stored in the "
        "log directory and in the cache, so that the same run gives the same bits again; off = the library's first choice",
    )
    master_weights: bool | None = _setting("-w", "machine", "0|1", _switch, "1 = in bf16, AdamW keeps an fp32 copy of the weights")
    attention: str | None = _setting(
        None,
        "machine",
        "NAME",
        _one_of("auto", "numba", "cudnn"),
        "attention kernels in bf16 on a GPU: numba (this package's), cudnn (NVIDIA's library, which must be installed and needs more "
        "memory) or auto (the faster); fp32 always uses this package's. The choice affects the bits of a run",
    )
    graph: bool | None = _setting(
        None,
        "machine",
        "on|off",
        _on_off,
        "on = record the launches of a step as CUDA graphs and replay them; off = launch the kernels one by one; the bits are the same",
    )
    peak_tflops: float | None = _setting(
        None, "machine", "TFLOPS", _number(0.001), "the chip's dense bf16 peak, for MFU", unset="derived from the chip's name or properties"
    )

    zero_stage: int | None = _setting(
        "-z",
        "processes",
        "STAGE",
        _integer(0, 2),
        "ZeRO: what is partitioned over the processes instead of replicated: 0 nothing, 1 AdamW's averages and the master weights, 2 the "
        "gradients as well (more communication); no effect with one process",
    )
    processes: int | None = _setting(
        "-pn",
        "processes",
        "N",
        _integer(1),
        "number of processes; with -pi mpi, mpirun sets it",
        unset="as many as mpirun started",
    )
    rank: int | None = _setting(
        "-pr", "processes", "RANK", _integer(0), "with -pi tcp or fs: rank of this process, from 0", unset="MPI's rank"
    )
    gpus_per_node: int | None = _setting("-pg", "processes", "N", _integer(1), "GPUs to use on each host, one per process", unset="all")
    init_method: str | None = _setting(
        "-pi",
        "processes",
        "NAME",
        _one_of("mpi", "tcp", "fs"),
        "how the processes find each other: mpi (started by mpirun, or by srun --mpi=pmix), tcp or fs (started by hand or by srun)",
    )
    server_address: str | None = _setting(
        "-ps", "processes", "HOST[:PORT]", _text, "with -pi tcp: the address on which rank 0 listens", unset="none"
    )
    shared_path: str | None = _setting(
        "-pf", "processes", "DIR", _path, "with -pi fs: a directory that all processes can access", unset="none"
    )
    hang_timeout: int | None = _setting(
        None,
        "processes",
        "SECONDS",
        _integer(0),
        "if no process makes progress for this long, end them all and report which one the others waited for; 0 = wait for ever",
    )


# llm.c's defaults, for runs on token shards.
SHARD_DEFAULTS = Settings(
    wait_for_shards=False,
    model="d12",
    recompute=1,
    seed=42,
    batch_size=4,
    sequence_length=1024,
    max_steps=-1,
    schedule="cosine",
    learning_rate=3e-4,
    warmup_steps=0,
    final_lr_fraction=1.0,
    weight_decay=0.0,
    skip_loss_z=0.0,
    skip_norm_z=0.0,
    overfit_one_batch=False,
    val_every=20,
    val_batches=20,
    sample_every=20,
    sample_tokens=64,
    hellaswag=False,
    eval_file="data/hellaswag_val.bin",
    stats_every=0,
    gpu_info_every=-1,
    checkpoint_every=0,
    final_checkpoint=True,
    keep_checkpoints=0,
    major_checkpoint_every=0,
    resume=False,
    restart_data=False,
    zero_stage=0,
    init_method="mpi",
    hang_timeout=600,
    device="auto",
    precision="auto",
    kernels="auto",
    tf32=True,
    matmul_search=True,
    master_weights=True,
    attention="auto",
    graph=True,
)

# The run without any flags is meant for a laptop and two minutes: 614,400 tokens, a model of under a million parameters and a high learning
# rate, which a model this small tolerates. The sequences are short because OpenBLAS splits larger attention products over threads, which
# then wait for each other on a busy machine. Samples and a log are on by default.
BUILT_IN_CPU_DEFAULTS = dataclasses.replace(
    SHARD_DEFAULTS,
    model="L=4,NH=4,C=128",
    batch_size=16,
    sequence_length=64,
    max_steps=600,
    learning_rate=2e-3,
    warmup_steps=50,
    final_lr_fraction=0.1,
    weight_decay=0.1,
    val_every=100,
    sample_every=200,
    sample_tokens=256,
    log_dir="log_built_in",
)

# The same corpus on a GPU: about two passes over its 7.5 million training tokens.
BUILT_IN_GPU_DEFAULTS = dataclasses.replace(
    BUILT_IN_CPU_DEFAULTS,
    model="L=6,NH=6,C=384",
    batch_size=64,
    sequence_length=256,
    max_steps=1000,
    learning_rate=1e-3,
    warmup_steps=100,
)


def default_gelu_fusion(precision):
    """The default of -ge. In bf16 the fastest level (one H200, cuBLASLt 13.1); in fp32 the library's GELU is not accurate enough."""
    return 2 if precision == "bf16" else 0


def with_defaults(settings, device):
    """Settings with every flag that was not given filled in.

    device: "cpu" or "gpu", where the run will be. Fields whose default is None (see SHARD_DEFAULTS) stay None.
    """
    if settings.train_data is not None:
        defaults = SHARD_DEFAULTS
    else:
        defaults = BUILT_IN_GPU_DEFAULTS if device == "gpu" else BUILT_IN_CPU_DEFAULTS
    given = {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
    return dataclasses.replace(defaults, **given)


# --- The command line ---


def parse_settings(argv):
    """Parse the arguments of `python -m gpt2_numba.train` (a list of str, without the program's name).

    Returns Settings in which flags that were not given are None; of a flag given twice the last value counts. For --help, prints the help
    and exits with code 0. Raises UserError for an unknown flag, naming the nearest known one, for a flag without a value, and for a value
    that breaks the flag's rule.
    """
    if "--help" in argv:
        print(_help())
        raise SystemExit(0)
    settings = Settings(**{field.name: _convert(field, flag, text) for field, flag, text in _split(argv)})
    if (settings.train_data is None) != (settings.val_data is None):
        given, missing = ("-i", "-j") if settings.val_data is None else ("-j", "-i")
        raise UserError(
            f"-i (training data) and -j (validation data) go together, got only {given}: add {missing}, or omit both for the built-in "
            "corpus"
        )
    return settings


def _split(argv):
    """Yield the arguments as triples (field of Settings, flag, text of its value).

    Every flag takes one value: `-b 4` or `-b=4`, `--batch-size 4` or `--batch-size=4`. Not left to argparse, which reads
    `-step 3` as `-s tep` and, in some versions of Python, `-1e-4` as a flag.
    """
    fields_by_flag = {flag: field for field in dataclasses.fields(Settings) for flag in _flags(field)}
    remaining, after = iter(argv), None
    for argument in remaining:
        flag, equals, text = argument.partition("=")
        if flag not in fields_by_flag:
            raise UserError(_unknown_flag_message(argument, list(fields_by_flag), after))
        if not equals:
            text = next(remaining, None)
            if text is None or text in fields_by_flag:
                received = "nothing" if text is None else f"the flag {text}"
                raise UserError(f"{flag} needs a value, got {received}: see --help for what it takes")
        after = flag if fields_by_flag[flag].metadata["metavar"] == "PATTERN" else None
        yield fields_by_flag[flag], flag, text


def _unknown_flag_message(argument, known_flags, pattern_flag):
    """pattern_flag: the flag whose value came just before, if it takes a pattern of paths."""
    if not argument.startswith("-"):
        advice = f"quote the pattern after {pattern_flag}, or the shell replaces it by all its files" if pattern_flag else "see --help"
        return f"the command line consists of flags with one value each, got {argument!r} where a flag belongs: {advice}"
    argument = argument.partition("=")[0]
    # Upper case and underscores are the likeliest slips. A long flag is compared with long ones only, though a short one may share a larger
    # part of its few letters. With a cutoff of 0 there always is a nearest flag.
    tidied = argument.lower().replace("_", "-")
    candidates = [flag for flag in [*known_flags, "--help"] if flag.startswith("--") or not argument.startswith("--")]
    nearest = difflib.get_close_matches(tidied, candidates, n=1, cutoff=0.0)[0]
    return f"unknown flag {argument}: did you mean {nearest}? (--help lists all flags)"


def _convert(field, flag, text):
    try:
        return field.metadata["convert"](text)
    except ValueError as rule:
        received = text if len(text) <= 80 else text[:77] + "..."
        raise UserError(f"{flag} must be {rule}, got {received!r}: see --help ({_default(field)})") from None


def _help():
    """The help text. argparse only formats it; parsing is done by _split."""
    parser = argparse.ArgumentParser(
        usage="python -m gpt2_numba.train [FLAG VALUE]...",
        add_help=False,
        description="Train GPT-2. Without flags: a small model on the built-in corpus. Short flags are llm.c's.",
        epilog=MODEL_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = {}
    for field in dataclasses.fields(Settings):
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument(*_flags(field), metavar=field.metadata["metavar"], help=f"{field.metadata['help']} [{_default(field)}]")
    return parser.format_help()


def _flags(field):
    """The flags of a field: the short one, if any, and the long one."""
    short = field.metadata["short"]
    long = "--" + field.name.replace("_", "-")
    return [long] if short is None else [short, long]


def _default(field):
    """'default 4; built-in corpus: 8 on a CPU, 64 on a GPU', as short as the values allow."""
    shards, on_cpu, on_gpu = (
        _shown(getattr(defaults, field.name), field) for defaults in (SHARD_DEFAULTS, BUILT_IN_CPU_DEFAULTS, BUILT_IN_GPU_DEFAULTS)
    )
    if shards == on_cpu == on_gpu:
        return f"default {shards}"
    if on_cpu == on_gpu:
        return f"default {shards}; built-in corpus: {on_cpu}"
    return f"default {shards}; built-in corpus: {on_cpu} on a CPU, {on_gpu} on a GPU"


def _shown(value, field):
    """A default as it would be typed."""
    if value is None:
        return field.metadata["unset"]
    if field.metadata["convert"] is _on_off:
        return "on" if value else "off"
    return str(int(value)) if isinstance(value, bool) else str(value)
