"""The settings of a training run, and their defaults.

Each field of `Settings` is one flag, declared with its short form (llm.c's), its rule and its help (flags.py); the long form is the field's
name. A flag that is not given is None; `with_defaults` then fills in llm.c's value or, on the built-in corpus, one that suits the corpus and
the device.
"""

import dataclasses
from dataclasses import dataclass

from gpt2_numba.errors import UserError
from gpt2_numba.options import Options
from gpt2_numba.training.flags import (
    help_text,
    installed,
    integer,
    name_or_path,
    non_empty,
    number,
    on_off,
    one_of,
    or_word,
    parse_flags,
    path,
    setting,
    shown,
    switch,
)
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


@dataclass(frozen=True)
class Settings:
    """All settings of a run; None means "not given". Sizes are in tokens, losses in nats per token."""

    train_data: str | None = setting(
        "-i",
        "data",
        "PATTERN",
        path,
        "token shards to train on: a path or a quoted pattern; requires -j",
        unset="the built-in corpus",
    )
    val_data: str | None = setting("-j", "data", "PATTERN", path, "token shards for validation; requires -i", unset="the built-in corpus")
    wait_for_shards: bool | None = setting(
        None,
        "data",
        "on|off",
        on_off,
        "on = train while python -m gpt2_numba.data is still fetching the shards: order and sizes come from its manifest, and a shard that "
        "is missing is waited for; the bits are the same",
    )

    model: str | None = setting(
        "-e",
        "model",
        "MODEL",
        name_or_path,
        "model descriptor, or a model to start from: FILE.bin, gpt2, or another of Hugging Face's (see below)",
    )
    recompute: int | None = setting(
        "-r",
        "model",
        "LEVEL",
        integer(0, 2),
        "what the backward pass recomputes instead of storing: 0 nothing (fastest, most memory), 1 GELU, 2 GELU and LayerNorm",
    )
    gelu_fusion: int | None = setting(
        "-ge",
        "model",
        "LEVEL",
        integer(0, 2),
        "GELU fused into cuBLASLt's epilogue: 0 never, 1 in the forward pass, 2 in both passes; no effect on a CPU",
        unset="2 in bf16, 0 in fp32, where cuBLASLt's GELU is accurate to only 11 bits",
    )
    seed: int | None = setting(None, "model", "N", integer(0, 2**32 - 1), "seed of the initial weights")

    batch_size: int | str | None = setting(
        "-b",
        "batch",
        "B",
        or_word("auto", integer(1)),
        "micro-batch: sequences per forward pass of a process; auto = the largest that fits into GPU memory and divides -d",
    )
    sequence_length: int | None = setting("-t", "batch", "T", integer(1), "tokens per sequence")
    total_batch_tokens: int | None = setting(
        "-d",
        "batch",
        "TOKENS",
        integer(1),
        "tokens per update, a multiple of B * T * processes; above that, gradients are accumulated over several micro-batches",
        unset="B * T * processes",
    )

    max_steps: int | None = setting(
        "-x", "optimisation", "STEPS", integer(1, or_value=-1), "number of updates; -1 = one pass over the data"
    )
    schedule: str | None = setting("-k", "optimisation", "NAME", one_of(*SCHEDULES), "learning-rate schedule: " + ", ".join(SCHEDULES))
    learning_rate: float | None = setting("-l", "optimisation", "RATE", number(0), "peak learning rate")
    warmup_steps: int | None = setting("-u", "optimisation", "STEPS", integer(0), "steps over which the learning rate rises to its peak")
    final_lr_fraction: float | None = setting(
        "-q", "optimisation", "FRACTION", number(0, 1), "final learning rate as a fraction of the peak"
    )
    weight_decay: float | None = setting(
        "-c", "optimisation", "RATE", number(0), "AdamW's weight decay, applied to matrices and embeddings only"
    )
    skip_loss_z: float | None = setting("-sl", "optimisation", "Z", number(0), "skip updates whose loss has a z-score above this; 0 = off")
    skip_norm_z: float | None = setting(
        "-sg", "optimisation", "Z", number(0), "skip updates whose gradient norm has a z-score above this; 0 = off"
    )
    frozen_tensors: str | None = setting(
        None,
        "optimisation",
        "NAME",
        one_of("stop", "warn"),
        "what to do about a tensor of parameters whose gradient was exactly 0 in each of the first steps: stop the run, or warn and go on",
    )
    overfit_one_batch: bool | None = setting(
        "-a",
        "optimisation",
        "0|1",
        switch,
        "1 = train on a single batch of the validation data over and over, to check that the loss falls to nearly 0",
    )

    val_every: int | None = setting("-v", "progress", "STEPS", integer(0), "validate every STEPS steps and at the end; 0 = off")
    val_batches: int | None = setting("-m", "progress", "N", integer(1), "batches of B * T tokens per validation")
    hellaswag: bool | None = setting(
        "-h", "progress", "0|1", switch, "1 = measure accuracy on multiple-choice questions at every validation but the first"
    )
    eval_file: str | None = setting(
        None, "progress", "FILE", path, "the questions for -h, a file made by python -m gpt2_numba.data hellaswag or by llm.c"
    )
    sample_every: int | None = setting("-s", "progress", "STEPS", integer(0), "print a sample every STEPS steps and at the end; 0 = off")
    sample_tokens: int | None = setting("-g", "progress", "TOKENS", integer(1), "tokens per sample")
    log_dir: str | None = setting(
        "-o", "progress", "DIR", path, "directory for main.log, run.jsonl, the loss plot and the checkpoints", unset="none"
    )
    stats_every: int | None = setting(
        None,
        "progress",
        "STEPS",
        integer(0),
        "log statistics of every layer's gradients and activations every STEPS steps, for the plots; 0 = off",
    )
    track: str | None = setting(
        None,
        "progress",
        "PACKAGE",
        installed(*TRACKERS),
        f"send the results to {', '.join(TRACKERS)} as well, whichever is named and installed",
        unset="none",
    )
    gpu_info_every: int | None = setting(
        "-lg",
        "progress",
        "STEPS",
        integer(1, or_value=-1),
        "print the GPU's clock, power, temperature and load every STEPS steps; -1 = off",
    )

    checkpoint_every: int | None = setting("-n", "checkpoints", "STEPS", integer(0), "write a checkpoint every STEPS steps; 0 = off")
    final_checkpoint: bool | None = setting(
        None, "checkpoints", "on|off", on_off, "on = write a checkpoint at the end of the run, too, if there is a log directory"
    )
    keep_checkpoints: int | None = setting("-nk", "checkpoints", "N", integer(0), "keep only the N newest checkpoints; 0 = all")
    major_checkpoint_every: int | None = setting(
        "-nm", "checkpoints", "STEPS", integer(0), "never delete a checkpoint whose step is a multiple of STEPS; 0 = off"
    )
    resume: bool | None = setting(
        "-y", "checkpoints", "0|1", switch, "1 = resume from the newest checkpoint in the log directory, if there is one"
    )
    restart_data: bool | None = setting(
        None,
        "checkpoints",
        "on|off",
        on_off,
        "on = a resumed run starts its data over, for instance with other shards; off = it continues where the checkpoint was",
    )

    device: str | None = setting(None, "machine", "NAME", one_of("auto", "cpu", "gpu"), "auto (the GPU if there is one), cpu or gpu")
    kernels: str | None = setting(
        None,
        "machine",
        "NAME",
        name_or_path,
        "kernels on a GPU or in the simulator: fast (needs compute capability 8.0 or later), plain (written to be read; fp32, any GPU), "
        "plain,cublaslt (plain, but with NVIDIA's library for matrix products), FILE.py (your own layer functions, and plain ones for the "
        "rest), or auto (fast if the GPU supports it, else plain,cublaslt)",
    )
    precision: str | None = setting(
        None,
        "machine",
        "NAME",
        one_of("auto", "fp32", "bf16", "fp8"),
        "type of weights, activations and gradients: auto (bf16 if the GPU supports it, else fp32), fp32, bf16, or fp8: bf16, but the "
        "matrix products of the blocks multiply numbers of eight bits, which is faster for wide models (docs/fp8.md)",
    )
    tf32: bool | None = setting(
        "-f", "machine", "0|1", switch, "1 = fp32 matrix products on a GPU may round their inputs to TF32, which is faster"
    )
    matmul_search: bool | None = setting(
        None,
        "machine",
        "on|off",
        on_off,
        "on = time cuBLASLt's algorithms for each matrix product (a few seconds in all) and use the fastest; the choice is stored in the "
        "log directory and in the cache, so that the same run gives the same bits again; off = the library's first choice",
    )
    master_weights: bool | None = setting("-w", "machine", "0|1", switch, "1 = in bf16, AdamW keeps an fp32 copy of the weights")
    attention: str | None = setting(
        None,
        "machine",
        "NAME",
        one_of("auto", "numba", "cudnn"),
        "attention kernels in bf16 on a GPU: numba (this package's), cudnn (NVIDIA's library, which must be installed and needs more "
        "memory) or auto (the faster); fp32 always uses this package's. The choice affects the bits of a run",
    )
    graph: bool | None = setting(
        None,
        "machine",
        "on|off",
        on_off,
        "on = record the launches of a step as CUDA graphs and replay them; off = launch the kernels one by one; the bits are the same",
    )
    guards: bool | None = setting(
        None,
        "machine",
        "on|off",
        on_off,
        "on = after every launch, check that it has written only into its arrays and has read nothing that was not written; many times "
        "slower, for trying kernels; the bits are the same",
    )
    peak_tflops: float | None = setting(
        None, "machine", "TFLOPS", number(0.001), "the chip's dense bf16 peak, for MFU", unset="derived from the chip's name or properties"
    )

    zero_stage: int | None = setting(
        "-z",
        "processes",
        "STAGE",
        integer(0, 2),
        "ZeRO: what is partitioned over the processes instead of replicated: 0 nothing, 1 AdamW's averages and the master weights, 2 the "
        "gradients as well (more communication); no effect with one process",
    )
    processes: int | None = setting(
        "-pn",
        "processes",
        "N",
        integer(1),
        "number of processes; with -pi mpi, mpirun sets it",
        unset="as many as mpirun started",
    )
    rank: int | None = setting(
        "-pr", "processes", "RANK", integer(0), "with -pi tcp or fs: rank of this process, from 0", unset="MPI's rank"
    )
    gpus_per_node: int | None = setting("-pg", "processes", "N", integer(1), "GPUs to use on each host, one per process", unset="all")
    init_method: str | None = setting(
        "-pi",
        "processes",
        "NAME",
        one_of("mpi", "tcp", "fs"),
        "how the processes find each other: mpi (started by mpirun, or by srun --mpi=pmix), tcp or fs (started by hand or by srun)",
    )
    server_address: str | None = setting(
        "-ps", "processes", "HOST[:PORT]", non_empty, "with -pi tcp: the address on which rank 0 listens", unset="none"
    )
    shared_path: str | None = setting(
        "-pf", "processes", "DIR", path, "with -pi fs: a directory that all processes can access", unset="none"
    )
    hang_timeout: int | None = setting(
        None,
        "processes",
        "SECONDS",
        integer(0),
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
    frozen_tensors="stop",
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
    guards=False,
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


def storage_precision(precision):
    """The precision in which tensors are kept, "fp32" or "bf16", for a --precision other than auto."""
    return "bf16" if precision == "fp8" else precision


def options_of(settings, kernels):
    """The Options of the model that complete Settings describe. kernels: KernelSet"""
    shared = [field.name for field in dataclasses.fields(Options) if field.name not in ("precision", "float8", "kernels")]  # the same names
    own = dict(precision=storage_precision(settings.precision), float8=settings.precision == "fp8", kernels=kernels)
    return Options(**own, **{name: getattr(settings, name) for name in shared})


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
        description = "Train GPT-2. Without flags: a small model on the built-in corpus. Short flags are llm.c's."
        print(help_text(Settings, _default, usage="python -m gpt2_numba.train [FLAG VALUE]...", description=description, epilog=MODEL_HELP))
        raise SystemExit(0)
    settings = parse_flags(Settings, argv, _default)
    if (settings.train_data is None) != (settings.val_data is None):
        given, missing = ("-i", "-j") if settings.val_data is None else ("-j", "-i")
        raise UserError(
            f"-i (training data) and -j (validation data) go together, got only {given}: add {missing}, or omit both for the built-in "
            "corpus"
        )
    return settings


def _default(field):
    """'default 4; built-in corpus: 8 on a CPU, 64 on a GPU', as short as the values allow."""
    shards, on_cpu, on_gpu = (
        shown(getattr(defaults, field.name), field) for defaults in (SHARD_DEFAULTS, BUILT_IN_CPU_DEFAULTS, BUILT_IN_GPU_DEFAULTS)
    )
    if shards == on_cpu == on_gpu:
        return f"default {shards}"
    if on_cpu == on_gpu:
        return f"default {shards}; built-in corpus: {on_cpu}"
    return f"default {shards}; built-in corpus: {on_cpu} on a CPU, {on_gpu} on a GPU"
