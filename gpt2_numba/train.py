"""Train GPT-2:  python -m gpt2_numba.train  (--help lists the flags).

Without flags: a small model on text that every Python carries, on the GPU if there is one, else on the CPU.
"""

import signal
import sys
from dataclasses import fields, replace

import numpy as np

from gpt2_numba.command_line import exit_code
from gpt2_numba.config import parse_descriptor
from gpt2_numba.data.builtin_corpus import builtin_corpus
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.data.multiple_choice import MultipleChoice
from gpt2_numba.data.prefetch import Prefetcher
from gpt2_numba.data.token_shards import find_shards
from gpt2_numba.data.tokenizers import BYTE_VOCAB_SIZE, GPT2_VOCAB_SIZE, encoding_for_vocab
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.arena import free_gpu_bytes
from gpt2_numba.gpu.backend import BFLOAT16_BITS, bfloat16_supported, device_name, device_properties, real_gpu
from gpt2_numba.gpu.cublaslt import search_algorithms, take_first_algorithms
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.layers.attention import choose_engine, engine_name
from gpt2_numba.model import GPT2, count_parameters, largest_batch, parameter_shapes
from gpt2_numba.plot import plot_losses
from gpt2_numba.resume import Checkpoint, Course, open_newest, restore, save
from gpt2_numba.step_reports import StepReports, StepResult
from gpt2_numba.training.checkpoint import CheckpointFailed, done_checkpoints
from gpt2_numba.training.gpu_info import gpu_info
from gpt2_numba.training.log import MainLog
from gpt2_numba.training.model_file import read_model_file
from gpt2_numba.training.sampler import Xorshift64Star, sample_from_logits
from gpt2_numba.training.schedules import learning_rate
from gpt2_numba.training.settings import default_gelu_fusion, parse_settings, with_defaults
from gpt2_numba.training.speed import flops_per_token, peak_flops
from gpt2_numba.training.stop_request import StopRequest

GRAD_CLIP = 1.0  # largest norm of all gradients together
MEMORY_RESERVE = 1 << 30  # bytes that -b auto leaves free: kernels, cuBLASLt and the search of its algorithms need some
SAMPLING_SEED = 1337
SMALLEST_SAMPLING_CONTEXT = 32  # a forward pass for sampling has 32, 64, 128, ... tokens: few shapes, little waste


def train(settings):
    """Run one training from start to end. settings: Settings as choose_machine gives them. Returns the trained GPT2.

    Raises Stopped if it was asked to stop, UserError if something that was asked for cannot be had.
    """
    start_from = open_start(settings)
    settings = choose_precision(settings, start_from)
    choose_attention(settings)
    config, encoding = choose_model(settings, start_from)
    settings = choose_batch_size(settings, config)
    grad_accum_steps = accumulation_steps(settings)
    train_loader, val_loader = make_loaders(settings, config)
    B, T = settings.batch_size, settings.sequence_length
    tokens_per_step = B * T * grad_accum_steps
    max_steps = settings.max_steps if settings.max_steps > 0 else max(1, train_loader.num_tokens // tokens_per_step)
    questions = MultipleChoice(settings.eval_file, B, T, vocab_size=config.V) if settings.hellaswag else None

    model = GPT2(
        config, B, T, settings.device, settings.precision, settings.recompute, settings.master_weights, settings.tf32,
        settings.gelu_fusion, settings.graph,
    )  # fmt: skip
    print_overview(settings, config, model, train_loader, val_loader, max_steps, grad_accum_steps)
    choose_matmuls(settings)
    course = Course(settings.rank)
    first_step = load_start(model, start_from, train_loader, course, settings.seed)
    if first_step > max_steps:
        raise UserError(f"the steps (-x) must be at least the {first_step} that the checkpoint has behind it, got {max_steps}: ask for more")

    log = MainLog(settings.log_dir, go_on=first_step > 0)
    peak = chip_peak(settings)
    peak_tokens = peak / flops_per_token(count_parameters(config), config.L, config.C, T) if peak else None
    reports = StepReports(max_steps, tokens_per_step, log, overlap=settings.device == "gpu", peak_tokens_per_second=peak_tokens)

    step = first_step
    with Prefetcher(train_loader) as batches, StopRequest() as stop:
        while True:
            last = step == max_steps

            # Once in a while: how good is the model on text that it has not seen?
            if settings.val_every and (step % settings.val_every == 0 or last):
                reports.finish()
                val_loss = validate(model, val_loader, settings.val_batches)
                print(f"val loss {val_loss:.6f}")
                log.write_validation(step, val_loss)

            # Once in a while: does it choose the right endings?
            if questions and (step > 0 and settings.val_every and step % settings.val_every == 0 or last):
                reports.finish()
                score = answer(model, questions)
                low, high = score.interval
                print(f"HellaSwag: {score.correct}/{score.examples} = {score.accuracy:.4f} (95 % between {low:.4f} and {high:.4f})")
                log.write_accuracy(step, score.accuracy)

            # Once in a while: what does it write?
            if settings.sample_every and (step > 0 and step % settings.sample_every == 0 or last):
                reports.finish()
                print(f"generating:\n---\n{sample(model, encoding, settings.sample_tokens)}\n---")

            # Once in a while, and when asked to stop: keep all that is needed to go on.
            due = settings.checkpoint_every and (step % settings.checkpoint_every == 0 or last)
            stopping = stop.requested  # looked at once: a signal after this line is for the next step, which then keeps its own
            if settings.log_dir and step > first_step and (due or stopping):
                reports.finish()
                save_or_say_why_not(settings, step, model, batches, course)

            if last or stopping:
                reports.finish()
                break

            # One step: gradients of all micro-batches, then the update. The GPU is asked for it; what comes of it is told later.
            reports.begin(model.moment())
            model.zero_grad()
            if settings.overfit_one_batch:
                batches.reset()
            for _ in range(grad_accum_steps):
                inputs, targets = batches.next_batch()
                model.forward(inputs)
                model.backward(targets, grad_accum_steps)
            rate = learning_rate(
                settings.schedule, step, max_steps, settings.learning_rate, settings.warmup_steps, settings.final_lr_fraction
            )
            result = StepResult(step, rate, model.measure(GRAD_CLIP), course)
            if result.is_outlier(settings.skip_loss_z, settings.skip_norm_z):
                _, loss_z, _, norm_z = result.values()
                print(f"skipping the update: z-score of the loss {loss_z:.2f}, of the norm {norm_z:.2f}")
            else:
                model.update(step, rate, settings.weight_decay, rounding_seed=course.next_rounding_seed())
            reports.add(result, model.moment())
            if settings.gpu_info_every > 0 and settings.device == "gpu" and (step + 1) % settings.gpu_info_every == 0:
                print(gpu_info())
            step += 1

    if stopping and not last:
        raise Stopped(stopping, step, settings)
    if log.path:
        picture = log.path.with_name("loss.png")
        plot_losses(log.path, picture, f"{config}, {count_parameters(config) / 1e6:.1f} M parameters")
        print(f"wrote {log.path} and {picture}")
    return model


class Stopped(Exception):
    """The run was asked to stop and did so after `step` updates."""

    def __init__(self, signal_name, step, settings):
        how = "no checkpoint was written, since no log directory was given (-o)"
        if settings.log_dir:
            there = done_checkpoints(settings.log_dir)
            how = f"no checkpoint is in {settings.log_dir}: the same command begins anew"
            if there:
                how = f"to go on, give the same command with -y 1: it resumes from the checkpoint of step {there[0]} in {settings.log_dir}"
        super().__init__(f"stopped by {signal_name} after {step} steps; {how}")


# ------------------------------------------------------------------------------------------------- parts of the loop


def validate(model, loader, batches):
    """Mean loss (nats per token) over the first `batches` batches of the validation data."""
    loader.reset()
    for _ in range(batches):
        model.evaluate(*loader.next_batch())
    return model.take_loss()


def answer(model, questions):
    """The Score of the model on multiple-choice questions."""
    for inputs, targets, _ in questions:
        model.evaluate(inputs, targets)
        questions.score(model.losses_to_host())
    model.take_loss()  # the mean over the batches says nothing here
    return questions.result()


def save_or_say_why_not(settings, step, model, batches, course):
    """Write a checkpoint; if that fails, for want of space for instance, the run goes on."""
    try:
        save(settings.log_dir, step, model, batches, course, settings.keep_checkpoints, settings.major_checkpoint_every)
        print(f"wrote the checkpoint of step {step} to {settings.log_dir}")
    except CheckpointFailed as error:
        print(f"warning: {error}", file=sys.stderr)


def sample(model, encoding, count):
    """Text of `count` tokens that the model writes after end-of-text, always from the same random numbers.

    Every token costs one forward pass over the context, whose logits at the last place give the next token's probabilities.
    """
    coins = Xorshift64Star(SAMPLING_SEED)
    tokens = [model.config.V - 1]  # end-of-text is the last token of both tokenizers
    for _ in range(count):
        context = tokens[-model.T :]
        length = SMALLEST_SAMPLING_CONTEXT
        while length < len(context):
            length *= 2
        inputs = np.zeros((1, min(length, model.T)), np.int32)
        inputs[0, : len(context)] = context  # what stands behind is not seen: attention is causal
        model.forward(inputs)
        tokens.append(sample_from_logits(model.last_logits(len(context) - 1), coins.next_coin()))
    return " ".join(map(str, tokens[1:])) if encoding is None else encoding.decode(tokens[1:])


# ------------------------------------------------------------------------------------------------------ preparation


def choose_machine(settings):
    """Settings with the device decided, and every flag that was not given filled in."""
    device = settings.device if settings.device not in (None, "auto") else ("gpu" if real_gpu() else "cpu")
    return replace(with_defaults(settings, device), device=device)


def choose_precision(settings, start_from):
    """Settings with the precision decided, and what follows from it.

    "auto" is the precision of the files to start from; without any, bf16 on a GPU that has it.
    """
    precision = settings.precision
    if precision == "auto":
        params = None if start_from is None else start_from.params
        wants_bf16 = params is None or params.dtype == BFLOAT16_BITS
        precision = "bf16" if wants_bf16 and settings.device == "gpu" and bfloat16_supported() else "fp32"
    if precision == "bf16" and settings.device == "gpu" and real_gpu() and not bfloat16_supported():
        raise UserError(f"bf16 needs a GPU of compute capability 8.0 or later, {device_name()} has less: use --precision fp32")
    fusion = default_gelu_fusion(precision) if settings.gelu_fusion is None else settings.gelu_fusion
    return replace(settings, precision=precision, gelu_fusion=fusion)


def choose_attention(settings):
    """Say whose attention is to be used. In fp32 there is no choice, so nothing has to be installed for one."""
    choose_engine(settings.attention if settings.precision == "bf16" else "auto")


def open_start(settings):
    """What the run begins with: a Checkpoint (-y 1, or only its config and params: -e FILE.bin), or None: a fresh model."""
    if settings.processes > 1:
        raise UserError(f"-pn (processes) must be 1: this version trains with one process, got {settings.processes}")
    if settings.resume and not settings.log_dir:
        raise UserError("-y 1 (resume) needs the log directory of the run that is to go on: add -o DIR")
    there = done_checkpoints(settings.log_dir) if settings.log_dir else []
    if settings.resume and there:
        return open_newest(settings.log_dir)
    if settings.resume:
        print(f"no checkpoint in {settings.log_dir}: the run begins anew")
    elif there:
        raise UserError(
            f"{settings.log_dir} has the checkpoints of an earlier run, up to step {there[0]}: go on with it (-y 1), or name another directory (-o)"
        )
    if settings.model.endswith(".bin"):
        return Checkpoint(0, *read_model_file(settings.model))
    return None


def load_start(model, start_from, train_loader, course, seed):
    """Load what the run begins with. Returns the number of steps that it has behind it."""
    if start_from is None:
        model.load_pieces(draw_initial_weights(model.config, parameter_shapes(model.config), seed))
        return 0
    restore(start_from, model, train_loader, course)
    if start_from.state is not None:
        print(f"resumed after {start_from.step} steps")
    return start_from.step


def chip_peak(settings):
    """The chip's dense bf16 peak in FLOP/s: asked for, or the GPU's; None if it is not known."""
    if settings.peak_tflops:
        return settings.peak_tflops * 1e12
    return peak_flops(device_name(), *device_properties()) if settings.device == "gpu" and real_gpu() else None


def choose_model(settings, start_from):
    """The GPT2Config of the run, and its tokenizer (None if V is neither tokenizer's)."""
    if start_from is None:
        default_V = BYTE_VOCAB_SIZE if settings.train_data is None else GPT2_VOCAB_SIZE
        config = parse_descriptor(settings.model, default_T=settings.sequence_length, default_V=default_V)
    else:
        config = start_from.config
    if settings.sequence_length > config.max_T:
        raise UserError(
            f"the sequence length (-t) must be at most the model's longest context, {config.max_T}, got {settings.sequence_length}"
        )
    if not settings.sample_every:
        return config, None
    try:
        return config, encoding_for_vocab(config.V)
    except UserError as error:
        print(f"samples will be token numbers: {error}")
        return config, None


def make_loaders(settings, config):
    """Loaders for training and validation data: token shards, or the built-in corpus."""
    if settings.train_data is None:
        train_shards, val_shards = ([tokens] for tokens in builtin_corpus())
    else:
        train_shards, val_shards = find_shards(settings.train_data), find_shards(settings.val_data)
    sizes = {"B": settings.batch_size, "T": settings.sequence_length, "vocab_size": config.V}
    val_loader = DataLoader(val_shards, **sizes)
    if settings.overfit_one_batch:
        return DataLoader(val_shards, **sizes), val_loader
    return DataLoader(train_shards, **sizes, shuffle=True), val_loader


def choose_batch_size(settings, config):
    """Settings with the micro-batch decided: "auto" is the largest that fits into the GPU's memory and divides the tokens of a step."""
    if settings.batch_size != "auto":
        return settings
    if settings.device != "gpu" or not real_gpu():
        raise UserError("-b auto fills a GPU's memory, and this run has no GPU: give the micro-batch as a number")
    T, free = settings.sequence_length, free_gpu_bytes() - MEMORY_RESERVE
    fitting = largest_batch(config, T, settings.precision, settings.recompute, settings.master_weights, free)
    total = settings.total_batch_tokens
    if total and total % T:
        raise UserError(f"the tokens of a step (-d) must be a multiple of T = {T}, got {total}: {max(1, round(total / T)) * T} is the nearest")
    B = max((B for B in range(1, fitting + 1) if not total or total // T % B == 0), default=1)
    return replace(settings, batch_size=B)  # 1 even if it does not fit: the model says what is missing


def choose_matmuls(settings):
    """Say how cuBLASLt's algorithms are to be chosen: by trying, or as the library guesses."""
    if settings.matmul_search and settings.device == "gpu" and real_gpu():
        for line in search_algorithms(settings.log_dir):
            print(line)
    else:
        take_first_algorithms()


def accumulation_steps(settings):
    """How many micro-batches make a step."""
    micro_batch = settings.batch_size * settings.sequence_length
    total = settings.total_batch_tokens or micro_batch
    if total % micro_batch:
        nearest = max(1, round(total / micro_batch)) * micro_batch
        raise UserError(
            f"the tokens of a step (-d) must be a multiple of B * T = {settings.batch_size} * {settings.sequence_length} = {micro_batch}, "
            f"got {total}: {nearest} is the nearest"
        )
    return total // micro_batch


def print_overview(settings, config, model, train_loader, val_loader, max_steps, grad_accum_steps):
    """The settings, the sizes and the memory of the run, before it starts."""
    machine = device_name() if settings.device == "gpu" else "CPU, by NumPy"
    rows = [(field.name.replace("_", " "), getattr(settings, field.name)) for field in fields(settings)]
    rows += [
        ("machine", machine),
        ("model sizes", config),
        ("attention engine", engine_name(model.raw("params"), config.HS)),
        ("parameters", f"{count_parameters(config):,}"),
        ("training tokens", f"{train_loader.num_tokens:,}"),
        ("validation tokens", f"{val_loader.num_tokens:,}"),
        ("steps", max_steps),
        ("micro-steps a step", grad_accum_steps),
    ]
    for name, value in rows:
        print(f"| {name:<22} | {'' if value is None else value!s:<56} |")
    print(f"memory, allocated once:\n{model.arena.table()}")


def run(argv):
    """Train as the command line asks. Returns the exit code: 0, or 130 if the run was stopped."""
    try:
        train(choose_machine(parse_settings(argv)))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + signal.SIGINT
    except KeyboardInterrupt:
        print("\nstopped at once", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def main(argv):
    """The command line. Returns the exit code: 0, 2 for a mistake of the user's, told in one line, 130 if it was stopped."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
