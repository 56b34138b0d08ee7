"""What a training run needs before its first step: complete settings, data, model, and the step to start from.

`prepare` calls the functions below it from top to bottom; each takes what has been decided so far and decides one thing more. What is not
possible raises a UserError, whose single line says what would be.
"""

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

from gpt2_numba.config import GPT2_VOCAB_SIZE, count_parameters, parameter_shapes, parse_descriptor
from gpt2_numba.data.arriving_shards import Arrivals
from gpt2_numba.data.builtin_corpus import builtin_corpus
from gpt2_numba.data.evaluation.multiple_choice import read_share
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.data.token_shards import find_shards
from gpt2_numba.data.tokenizer_record import check_vocabulary_size, tokenizer_of_shards
from gpt2_numba.data.tokenizers import VOCAB_SIZES, encoding_for_vocab
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.arena import free_gpu_bytes
from gpt2_numba.gpu.backend import (
    BFLOAT16_BITS,
    bfloat16_supported,
    device_name,
    device_properties,
    float8_supported,
    real_gpu,
    require_gpu,
)
from gpt2_numba.gpu.cublaslt import adopt_algorithms, chosen_algorithms, search_algorithms, take_first_algorithms
from gpt2_numba.gpu.quantize import MULTIPLE
from gpt2_numba.huggingface import huggingface_config, huggingface_files, is_huggingface, read_huggingface
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.kernel_sets import choose_kernels
from gpt2_numba.layers.fast.attention import choose_engine, engine_name
from gpt2_numba.memory_fit import check_host_memory, largest_batch
from gpt2_numba.model import GPT2
from gpt2_numba.own_kernels import check_own_kernels
from gpt2_numba.parallel.agreement import check_agreement, facts_of_files, facts_of_settings, facts_of_versions, together
from gpt2_numba.parallel.shards import Sharing
from gpt2_numba.training.checkpoint import agreed_checkpoints, unfinished_checkpoints
from gpt2_numba.training.guarded_model import GuardedGPT2
from gpt2_numba.training.model_file import read_model_file
from gpt2_numba.training.resume import Checkpoint, RunState, open_newest, restore
from gpt2_numba.training.run_facts import check_training_data, differences, run_facts
from gpt2_numba.training.settings import (
    BUILT_IN_CPU_DEFAULTS,
    BUILT_IN_GPU_DEFAULTS,
    SHARD_DEFAULTS,
    Settings,
    default_gelu_fusion,
    options_of,
    storage_precision,
    with_defaults,
)
from gpt2_numba.training.speed import flops_per_token, peak_flops

MEMORY_RESERVE = 1 << 30  # bytes that -b auto leaves free for kernels, cuBLASLt and the search of its algorithms


@dataclass(frozen=True)
class PreparedRun:
    """Everything that the training loop uses."""

    settings: Settings  # complete: every flag has its value
    model: GPT2
    encoding: object | None  # the tokenizer; None: samples are printed as token numbers
    train_loader: DataLoader
    val_loader: DataLoader
    questions: list | None  # Examples for this process, perhaps none; None: no process answers questions
    run_state: RunState
    facts: dict  # recorded in checkpoints (run_facts.py)
    first_step: int  # steps already done
    max_steps: int
    grad_accum_steps: int  # micro-batches of each process in a step
    tokens_per_step: int


def prepare(settings, group, open_from=None):
    """Return the PreparedRun of a training. settings: from choose_machine. All processes of the group call it.

    open_from  None: open_start; or a function with its parameters and results, for a start from another checkpoint
    If one process fails, all of them end, with that process's reason.
    """

    def each(work, *arguments):
        return together(group, lambda: work(*arguments))

    group.doing("preparing the run")
    check_agreement(group, facts_of_settings(settings) | facts_of_versions(settings.device))
    start_from = each(open_from or open_start, settings, group)
    settings, config, encoding = each(choose_model, settings, start_from)
    weights = None
    if start_from is None:
        each(check_host_memory, config)
        weights = draw_initial_weights(config, parameter_shapes(config), settings.seed)  # drawn in the background
    settings = each(choose_precision, settings, start_from)
    kernels = each(choose_kernel_set, settings, config)
    each(choose_attention, settings)
    if settings.batch_size == "auto":
        settings = replace(settings, batch_size=min(group.gather(each(largest_batch_size, settings, config, group.ranks, kernels))))
    grad_accum_steps = each(accumulation_steps, settings, group.ranks)
    if settings.device == "gpu" and real_gpu():
        compile_in_background(settings, config, group.ranks)
    train_loader, val_loader = each(make_loaders, settings, config, group)
    questions = each(make_questions, settings, config, group)
    check_agreement(
        group,
        facts_of_files(data_files(settings))
        | {"checkpoint to resume from": None if start_from is None else start_from.step, "model sizes": str(config)},
    )
    tokens_per_step = settings.batch_size * settings.sequence_length * grad_accum_steps * group.ranks
    max_steps = settings.max_steps if settings.max_steps > 0 else max(1, train_loader.num_tokens // tokens_per_step)

    group.doing("preparing the model")
    model = each(make_model, settings, config, group, kernels)
    print_overview(settings, model, train_loader, val_loader, max_steps, grad_accum_steps)
    choose_matmuls(settings, model)
    run_state = RunState()
    first_step = each(load_start, settings, model, start_from, weights, train_loader, run_state, max_steps)
    facts = each(run_facts, settings, group.ranks)
    if start_from and (changes := differences(start_from.facts, facts)):
        print(f"what differs from the run that wrote the checkpoint: {'; '.join(changes)}")
    if start_from and not settings.restart_data:
        check_training_data(start_from.facts, facts)
    return PreparedRun(
        settings=settings, model=model, encoding=encoding, train_loader=train_loader, val_loader=val_loader, questions=questions,
        run_state=run_state, facts=facts, first_step=first_step, max_steps=max_steps, grad_accum_steps=grad_accum_steps,
        tokens_per_step=tokens_per_step,
    )  # fmt: skip


def choose_machine(settings):
    """Settings with the device decided and every flag that was not given filled in."""
    device = settings.device if settings.device not in (None, "auto") else ("gpu" if real_gpu() else "cpu")
    if device == "gpu":
        require_gpu()
    return replace(with_defaults(settings, device), device=device)


def open_start(settings, group):
    """What the run starts from: a Checkpoint (-y 1), one with only a model (-e FILE.bin, or Hugging Face's), or None for a fresh model."""
    if settings.resume and not settings.log_dir:
        raise UserError("-y 1 (resume) needs the log directory of the run to resume: add -o DIR")
    steps = agreed_checkpoints(settings.log_dir, group) if settings.log_dir else []
    unfinished = unfinished_checkpoints(settings.log_dir) if settings.log_dir else []
    if unfinished and unfinished[0] > max(steps, default=0):
        print(f"of step {unfinished[0]} there are files, but no DONE: they are not used")
    if settings.resume and steps:
        return open_newest(settings.log_dir, group)
    if settings.resume:
        print(f"no checkpoint in {settings.log_dir}: the run starts from the beginning")
    elif steps:
        raise UserError(
            f"{settings.log_dir} has checkpoints of an earlier run, up to step {steps[0]}: resume it (-y 1), or name another directory (-o)"
        )
    if settings.model.endswith(".bin"):
        return Checkpoint(0, *read_model_file(settings.model, share=(group.rank, group.ranks)))
    if is_huggingface(settings.model):
        config, pieces = read_huggingface(settings.model, report=group.doing)
        return Checkpoint(0, config, None, pieces=pieces)
    return None


def choose_model(settings, start_from):
    """Settings with the model decided, its GPT2Config, and the tokenizer of its samples: None if it is not known, or none are printed."""
    tokenizer = "bytes" if settings.train_data is None else tokenizer_of_shards(token_files(settings))
    vocabulary = VOCAB_SIZES.get(tokenizer)
    if start_from:
        config = start_from.config
        if start_from.step and _names_another(settings, config):
            print(f"the model is the checkpoint's, {config}, not {settings.model} (-e)")
            settings = replace(settings, model=str(config))
    else:
        config = parse_descriptor(settings.model, default_T=settings.sequence_length, default_V=vocabulary or GPT2_VOCAB_SIZE)
    check_vocabulary_size(config.V, tokenizer, is_fresh=start_from is None)
    if settings.sequence_length > config.max_T:
        raise UserError(
            f"the sequence length (-t) must be at most the model's longest context, {config.max_T}, got {settings.sequence_length}"
        )
    if not settings.sample_every:
        return settings, config, None
    try:
        return settings, config, encoding_for_vocab(vocabulary or config.V)
    except UserError as error:
        print(f"samples will be printed as token numbers: {error}")
        return settings, config, None


def _names_another(settings, config):
    """Whether -e was given and names another model than a checkpoint's, of this GPT2Config. Sizes that it omits are the checkpoint's."""
    if settings.model.endswith(".bin"):
        return Path(settings.model).exists() and read_model_file(settings.model, share=None)[0] != config
    if is_huggingface(settings.model):
        return huggingface_config(settings.model) not in (None, config)
    defaults = (SHARD_DEFAULTS.model, BUILT_IN_CPU_DEFAULTS.model, BUILT_IN_GPU_DEFAULTS.model)
    return settings.model not in defaults and parse_descriptor(settings.model, default_T=config.max_T, default_V=config.V) != config


def choose_precision(settings, start_from):
    """Settings with the precision decided, and the fusion of GELU, which depends on it.

    "auto" is the precision of the file to start from or, without one, bf16; both only if the GPU supports bf16. Plain kernels are fp32.
    """
    precision = settings.precision
    if precision == "auto" and settings.kernels not in ("auto", "fast"):
        precision = "fp32"
    if precision == "auto":
        params = None if start_from is None else start_from.params
        wants_bf16 = params is None or params.dtype == BFLOAT16_BITS
        precision = "bf16" if wants_bf16 and settings.device == "gpu" and bfloat16_supported() else "fp32"
    if precision == "bf16" and settings.device == "gpu" and real_gpu() and not bfloat16_supported():
        raise UserError(f"bf16 needs a GPU of compute capability 8.0 or later, and {device_name()} has less: use --precision fp32")
    if precision == "fp8":
        require_float8(settings)
    fusion = default_gelu_fusion(precision) if settings.gelu_fusion is None else settings.gelu_fusion
    return replace(settings, precision=precision, gelu_fusion=fusion)


def require_float8(settings):
    """Raise UserError unless a run can be in fp8."""
    if settings.device != "gpu" or not float8_supported():
        where = f"{device_name()} has less" if settings.device == "gpu" else "this run is on the CPU"
        raise UserError(f"fp8 needs a GPU of compute capability 8.9 or later, and {where}: use --precision auto")
    if settings.kernels not in ("auto", "fast"):
        raise UserError(f"fp8 needs the fast kernels, got --kernels {settings.kernels}: use --precision fp32, or --kernels fast")
    if settings.gelu_fusion:
        raise UserError(f"fp8 has the GELU in a kernel of its own, got -ge {settings.gelu_fusion}: use -ge 0")
    if settings.batch_size != "auto" and settings.batch_size * settings.sequence_length % MULTIPLE:
        raise UserError(
            f"fp8 needs micro-batches of a multiple of {MULTIPLE} tokens, got -b {settings.batch_size} -t {settings.sequence_length}"
        )


def choose_kernel_set(settings, config):
    """The KernelSet of the run. A user's own functions are checked first; for a wrong one, a table shows which tensor is off, and where."""
    kernels = choose_kernels(settings.kernels, settings.device, storage_precision(settings.precision))
    if kernels.own:
        check_own_kernels(kernels, config)
    return kernels


def choose_attention(settings):
    """Choose the attention kernels. In fp32 there is no choice: --attention is ignored, and its library need not be installed."""
    choose_engine("auto" if settings.precision == "fp32" else settings.attention)


def largest_batch_size(settings, config, ranks, kernels):
    """The micro-batch of -b auto: the largest that fits into the GPU's memory and divides the tokens of a step."""
    if settings.device != "gpu" or not real_gpu():
        raise UserError("-b auto fills a GPU's memory, and this run has no GPU: give -b as a number")
    free, sharing = free_gpu_bytes() - MEMORY_RESERVE, Sharing(config, 0, ranks, settings.zero_stage)
    largest = largest_batch(config, T=settings.sequence_length, options=options_of(settings, kernels), free_bytes=free, sharing=sharing)
    total = settings.total_batch_tokens
    row_tokens = ranks * settings.sequence_length  # one row in each process
    if total and total % row_tokens:
        raise UserError(
            f"the tokens of a step (-d) must be a multiple of T * processes = {settings.sequence_length} * {ranks} = {row_tokens}, "
            f"got {total}: the nearest is {max(1, round(total / row_tokens)) * row_tokens}"
        )
    multiple = MULTIPLE if settings.precision == "fp8" else 1
    rows = (B for B in range(1, largest + 1) if B * settings.sequence_length % multiple == 0)
    candidates = (B for B in rows if not total or total // row_tokens % B == 0)
    return max(candidates, default=1)  # 1 even if it does not fit, which the model reports


def compile_in_background(settings, config, ranks):
    """Compile what is missing of the run's kernels, in other processes, while this one prepares the rest."""
    from gpt2_numba.training import compile_ahead  # on a GPU only

    compile_ahead.start(settings, config, ranks)


def accumulation_steps(settings, ranks):
    """The number of micro-batches of each process in a step."""
    micro_step_tokens = settings.batch_size * settings.sequence_length * ranks
    total = settings.total_batch_tokens or micro_step_tokens
    if total % micro_step_tokens:
        nearest = max(1, round(total / micro_step_tokens)) * micro_step_tokens
        raise UserError(
            f"the tokens of a step (-d) must be a multiple of B * T * processes = {settings.batch_size} * {settings.sequence_length} * "
            f"{ranks} = {micro_step_tokens}, got {total}: the nearest is {nearest}"
        )
    return total // micro_step_tokens


def data_files(settings):
    """The files that determine the run: token shards, questions, the model file to start from."""
    files = [] if settings.train_data is None else token_files(settings)
    files += [settings.eval_file] * settings.hellaswag + [settings.model] * settings.model.endswith(".bin")
    return files + (huggingface_files(settings.model) if is_huggingface(settings.model) else [])


def token_files(settings):
    """The token shards for training and validation or, while they arrive, the manifests that list them."""
    find = Arrivals().find_manifests if settings.wait_for_shards else find_shards
    return [*find(settings.train_data), *find(settings.val_data)]


def make_loaders(settings, config, group):
    """Loaders for training and validation data: token shards, or the built-in corpus.

    Training batches differ between processes; validation batches are the same in all of them, which then take turns (see validate).
    """
    if settings.train_data is None:
        train_shards, val_shards = ([tokens] for tokens in builtin_corpus())
    else:
        find = Arrivals(group.doing).find if settings.wait_for_shards else find_shards
        train_shards, val_shards = find(settings.train_data), find(settings.val_data)
    sizes = {"B": settings.batch_size, "T": settings.sequence_length, "vocab_size": config.V}
    share = {"rank": group.rank, "ranks": group.ranks}
    val_loader = DataLoader(val_shards, **sizes)
    if settings.overfit_one_batch:
        return DataLoader(val_shards, **sizes, **share), val_loader
    return DataLoader(train_shards, **sizes, **share, shuffle=True), val_loader


def make_questions(settings, config, group):
    """The multiple-choice questions for this process, or None without -h."""
    if not settings.hellaswag:
        return None
    return read_share(settings.eval_file, settings.sequence_length, group.rank, group.ranks, config.V)


def make_model(settings, config, group, kernels):
    """The model, with its parameters not yet loaded."""
    model_class = GuardedGPT2 if settings.guards else GPT2
    return model_class(config, B=settings.batch_size, T=settings.sequence_length, options=options_of(settings, kernels), group=group)


def choose_matmuls(settings, model):
    """Choose cuBLASLt's algorithms: by timing them, or the library's first choices. Rank 0 times them for all processes."""
    if not (settings.matmul_search and settings.device == "gpu" and real_gpu()):
        return take_first_algorithms()
    group = model.group
    if group.rank == 0:
        for line in search_algorithms(settings.log_dir):
            print(line)
    else:
        take_first_algorithms()
    if group.ranks > 1:
        group.doing("timing algorithms for matrix products")
        model.rehearse()
        chosen = group.gather(chosen_algorithms() if group.rank == 0 else None)[0]
        if group.rank > 0:
            for line in adopt_algorithms(chosen):
                print(f"{group.names[group.rank]}: {line}", file=sys.stderr)


def load_start(settings, model, start_from, weights, train_loader, run_state, max_steps):
    """Load what the run starts from. Returns the number of steps already done. Raises UserError if they are more than max_steps."""
    if start_from is None:
        model.load_pieces(weights)
        return 0
    if start_from.step > max_steps:
        raise UserError(
            f"the steps (-x) must be at least the {start_from.step} that the checkpoint has already done, got {max_steps}: give a larger -x"
        )
    restore(start_from, model, None if settings.restart_data else train_loader, run_state)
    if start_from.states:
        print(f"resumed after {start_from.step} steps{', at the beginning of the data' if settings.restart_data else ''}")
    return start_from.step


def peak_tokens_per_second(settings, config, group):
    """Tokens/s of all chips together at their dense bf16 peak, --peak-tflops or the GPU's own; None if that is unknown."""
    peak = None
    if settings.peak_tflops:
        peak = settings.peak_tflops * 1e12
    elif settings.device == "gpu" and real_gpu():
        peak = peak_flops(device_name(), *device_properties())
    return peak and group.ranks * peak / flops_per_token(count_parameters(config), config.L, config.C, settings.sequence_length)


def print_overview(settings, model, train_loader, val_loader, max_steps, grad_accum_steps):
    """Print the settings, sizes and memory of the run before it starts."""
    config, machine = model.config, device_name() if settings.device == "gpu" else "CPU, by NumPy"
    rows = [(field.name.replace("_", " "), getattr(settings, field.name)) for field in fields(settings) if field.name != "kernels"]
    rows += [
        ("machine", machine),
        ("model sizes", config),
        ("kernels", f"{model.kernels.name} ({model.kernels.reason})"),
        ("parameters", f"{count_parameters(config):,}"),
        ("training tokens", f"{train_loader.num_tokens:,}"),
        ("validation tokens", f"{val_loader.num_tokens:,}"),
        ("steps", max_steps),
        ("micro-steps per step", grad_accum_steps),
    ]
    if model.kernels.own:
        rows.append(("your own functions", ", ".join(model.kernels.own)))
    if model.kernels.fused:
        rows.append(("attention engine", engine_name(model.raw("params"), config.HS)))
    if model.group.ranks > 1:
        rows += [("process", name) for name in model.group.names]
    for name, value in rows:
        print(f"| {name:<22} | {'' if value is None else value!s:<56} |")
    print(f"memory, allocated once:\n{model.arena.table()}")
