"""Train GPT-2:  python -m gpt2_numba.train  (--help lists the flags).

Without flags: a small model on text that every Python carries, on the GPU if there is one, else on the CPU. Several processes, a GPU each, train
one model together: mpirun -np 8 python -m gpt2_numba.train ... Each of them runs this file from top to bottom.
"""

import contextlib
import os
import signal
import sys
import traceback
from dataclasses import fields, replace

import numpy as np

from gpt2_numba.command_line import exit_code
from gpt2_numba.config import parse_descriptor
from gpt2_numba.data.builtin_corpus import builtin_corpus
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.data.multiple_choice import MultipleChoice, Score
from gpt2_numba.data.prefetch import Prefetcher
from gpt2_numba.data.token_shards import find_shards
from gpt2_numba.data.tokenizers import BYTE_VOCAB_SIZE, GPT2_VOCAB_SIZE, encoding_for_vocab
from gpt2_numba.errors import SharedError, UserError
from gpt2_numba.gpu.arena import free_gpu_bytes
from gpt2_numba.gpu.backend import BFLOAT16_BITS, bfloat16_supported, device_name, device_properties, real_gpu, require_gpu
from gpt2_numba.gpu.cublaslt import adopt_algorithms, chosen_algorithms, search_algorithms, take_first_algorithms
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.layers.attention import choose_engine, engine_name
from gpt2_numba.model import GPT2, count_parameters, largest_batch, parameter_shapes
from gpt2_numba.parallel.agreement import check_agreement, facts_of_files, facts_of_settings, facts_of_versions, together
from gpt2_numba.parallel.group import Alone
from gpt2_numba.parallel.shards import Shards
from gpt2_numba.parallel.start import join
from gpt2_numba.parallel.watch import end_process
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


def train(settings, group=None):
    """Run one training from start to end. Returns the trained GPT2.

    settings  Settings as choose_machine gives them        group  the processes that train together; None: this one alone
    Raises Stopped if it was asked to stop, UserError if something that was asked for cannot be had.
    """
    group = group or Alone()

    def each(work, *arguments):
        """Do it in every process. If any of them cannot, all stop, and say whose reason it was."""
        return together(group, lambda: work(*arguments))

    group.doing("preparing the run")
    check_agreement(group, facts_of_settings(settings) | facts_of_versions(settings.device))
    start_from = each(open_start, settings, group)
    config, encoding = each(choose_model, settings, start_from)
    weights = draw_initial_weights(config, parameter_shapes(config), settings.seed) if start_from is None else None  # beside what follows
    settings = each(choose_precision, settings, start_from)
    each(choose_attention, settings)
    if settings.batch_size == "auto":
        settings = replace(settings, batch_size=min(group.gather(each(largest_batch_size, settings, config, group.ranks))))
    grad_accum_steps = each(accumulation_steps, settings, group.ranks)
    train_loader, val_loader = each(make_loaders, settings, config, group)
    questions = each(make_questions, settings, config, group)
    check_agreement(group, facts_of_files(files_of(settings)) | {"checkpoint to resume from": None if start_from is None else start_from.step})
    tokens_per_step = settings.batch_size * settings.sequence_length * grad_accum_steps * group.ranks
    max_steps = settings.max_steps if settings.max_steps > 0 else max(1, train_loader.num_tokens // tokens_per_step)

    group.doing("preparing the model")
    model = each(make_model, settings, config, group)
    print_overview(settings, config, model, train_loader, val_loader, max_steps, grad_accum_steps)
    choose_matmuls(settings, model)
    course = Course()
    first_step = each(load_start, model, start_from, weights, train_loader, course, max_steps)

    log = MainLog(settings.log_dir if group.rank == 0 else None, go_on=first_step > 0)
    reports = StepReports(max_steps, tokens_per_step, log, settings.device == "gpu", peak_tokens_per_second(settings, config, group))

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
                if group.rank == 0:
                    print(f"generating:\n---\n{sample(model, encoding, settings.sample_tokens)}\n---")

            # Once in a while, and when asked to stop: keep all that is needed to go on.
            due = settings.checkpoint_every and (step % settings.checkpoint_every == 0 or last)
            # Looked at once: a signal after this line is for the next step, which then keeps its own. Several processes stop after the same step.
            stopping = stop.requested if group.ranks == 1 else reports.stopping
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
            for micro_step in range(grad_accum_steps):
                group.doing(f"step {step + 1}, micro-step {micro_step + 1}")
                inputs, targets = batches.next_batch()
                model.forward(inputs)
                model.backward(targets, grad_accum_steps, last=micro_step + 1 == grad_accum_steps)
            rate = learning_rate(
                settings.schedule, step, max_steps, settings.learning_rate, settings.warmup_steps, settings.final_lr_fraction
            )
            result = StepResult(step, rate, model.measure(GRAD_CLIP, stop=bool(stop.requested)), course)
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
        raise Stopped(stop.requested or "a signal to another process", step, settings)
    if log.path:
        group.doing("plotting the losses")
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
    """Mean loss (nats per token) over the first `batches` batches of the validation data, which the processes share out."""
    loader.reset()
    group, mine = model.group, 0
    for index in range(batches):
        if index % group.ranks == group.rank:
            group.doing(f"validation, batch {index + 1}")
            model.evaluate(*loader.next_batch())
            mine += 1
        else:
            loader.skip()
    (total,) = group.sum([model.take_loss() * mine if mine else 0.0])
    return total / batches


def answer(model, questions):
    """The Score of the model on multiple-choice questions, which the processes share out."""
    group = model.group
    for inputs, targets, _ in questions:
        group.doing("answering multiple-choice questions")
        model.evaluate(inputs, targets)
        questions.score(model.losses_to_host())
    if questions.batches:
        model.take_loss()  # the mean over the batches says nothing here
    mine = questions.result()
    correct, examples = group.sum([mine.correct, mine.examples])
    return Score(int(correct), int(examples))


def save_or_say_why_not(settings, step, model, batches, course):
    """Write a checkpoint; if that fails, for want of space for instance, the run goes on."""
    try:
        model.group.doing(f"writing the checkpoint of step {step}")
        save(settings.log_dir, step, model, batches, course, settings.keep_checkpoints, settings.major_checkpoint_every, model.group)
        print(f"wrote the checkpoint of step {step} to {settings.log_dir}")
    except CheckpointFailed as error:
        if model.group.rank == 0:
            print(f"warning: {error}", file=sys.stderr)


def sample(model, encoding, count):
    """Text of `count` tokens that the model writes after end-of-text, always from the same random numbers.

    Every token costs one forward pass over the context, whose logits at the last place give the next token's probabilities.
    """
    coins = Xorshift64Star(SAMPLING_SEED)
    tokens = [model.config.V - 1]  # end-of-text is the last token of both tokenizers
    for index in range(count):
        model.group.doing(f"sampling, token {index + 1}")
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
    if device == "gpu":
        require_gpu()
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


def open_start(settings, group):
    """What the run begins with: a Checkpoint (-y 1, or only its config and params: -e FILE.bin), or None: a fresh model."""
    if settings.resume and not settings.log_dir:
        raise UserError("-y 1 (resume) needs the log directory of the run that is to go on: add -o DIR")
    there = done_checkpoints(settings.log_dir) if settings.log_dir else []
    if settings.resume and there:
        return open_newest(settings.log_dir, warn=group.rank == 0)
    if settings.resume:
        print(f"no checkpoint in {settings.log_dir}: the run begins anew")
    elif there:
        raise UserError(
            f"{settings.log_dir} has the checkpoints of an earlier run, up to step {there[0]}: go on with it (-y 1), or name another directory (-o)"
        )
    if settings.model.endswith(".bin"):
        return Checkpoint(0, *read_model_file(settings.model))
    return None


def load_start(model, start_from, weights, train_loader, course, max_steps):
    """Load what the run begins with. Returns the number of steps that it has behind it, which must be at most max_steps."""
    if start_from is None:
        model.load_pieces(weights)
        return 0
    if start_from.step > max_steps:
        raise UserError(
            f"the steps (-x) must be at least the {start_from.step} that the checkpoint has behind it, got {max_steps}: ask for more"
        )
    restore(start_from, model, train_loader, course)
    if start_from.states:
        print(f"resumed after {start_from.step} steps")
    return start_from.step


def peak_tokens_per_second(settings, config, group):
    """What the chips could do together at their dense bf16 peak, asked for or the GPU's; None if it is not known."""
    peak = None
    if settings.peak_tflops:
        peak = settings.peak_tflops * 1e12
    elif settings.device == "gpu" and real_gpu():
        peak = peak_flops(device_name(), *device_properties())
    return peak and group.ranks * peak / flops_per_token(count_parameters(config), config.L, config.C, settings.sequence_length)


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


def make_loaders(settings, config, group):
    """Loaders for training and validation data: token shards, or the built-in corpus.

    Training batches differ from process to process; validation batches are the same in all, which then take turns (see validate).
    """
    if settings.train_data is None:
        train_shards, val_shards = ([tokens] for tokens in builtin_corpus())
    else:
        train_shards, val_shards = find_shards(settings.train_data), find_shards(settings.val_data)
    sizes = {"B": settings.batch_size, "T": settings.sequence_length, "vocab_size": config.V}
    place = {"rank": group.rank, "ranks": group.ranks}
    val_loader = DataLoader(val_shards, **sizes)
    if settings.overfit_one_batch:
        return DataLoader(val_shards, **sizes, **place), val_loader
    return DataLoader(train_shards, **sizes, **place, shuffle=True), val_loader


def make_questions(settings, config, group):
    """The multiple-choice questions that this process is to answer, or None if nothing is to be asked."""
    if not settings.hellaswag:
        return None
    return MultipleChoice(settings.eval_file, settings.batch_size, settings.sequence_length, group.rank, group.ranks, config.V)


def make_model(settings, config, group):
    """The model, its parameters not yet loaded."""
    return GPT2(
        config, settings.batch_size, settings.sequence_length, settings.device, settings.precision, settings.recompute,
        settings.master_weights, settings.tf32, settings.gelu_fusion, settings.graph, group, settings.zero_stage,
    )  # fmt: skip


def files_of(settings):
    """The files that decide how the run goes: token shards, questions, the model file to start from."""
    files = [] if settings.train_data is None else [*find_shards(settings.train_data), *find_shards(settings.val_data)]
    return files + [settings.eval_file] * settings.hellaswag + [settings.model] * settings.model.endswith(".bin")


def largest_batch_size(settings, config, ranks):
    """The micro-batch of -b auto: the largest that fits into the GPU's memory and divides the tokens of a step."""
    if settings.device != "gpu" or not real_gpu():
        raise UserError("-b auto fills a GPU's memory, and this run has no GPU: give the micro-batch as a number")
    free, shards = free_gpu_bytes() - MEMORY_RESERVE, Shards(config, 0, ranks, whole=settings.zero_stage == 0)
    fitting = largest_batch(
        config, settings.sequence_length, settings.precision, settings.recompute, settings.master_weights, free, shards, settings.zero_stage
    )  # fmt: skip
    total = settings.total_batch_tokens
    row = ranks * settings.sequence_length  # tokens of a row in every process
    if total and total % row:
        raise UserError(
            f"the tokens of a step (-d) must be a multiple of T * processes = {settings.sequence_length} * {ranks} = {row}, got {total}: "
            f"{max(1, round(total / row)) * row} is the nearest"
        )
    return max((B for B in range(1, fitting + 1) if not total or total // row % B == 0), default=1)  # 1 even if it does not fit: the model says so


def choose_matmuls(settings, model):
    """Say how cuBLASLt's algorithms are to be chosen: by trying, or as the library guesses. Of several processes the first tries for all."""
    if not (settings.matmul_search and settings.device == "gpu" and real_gpu()):
        return take_first_algorithms()
    group = model.group
    if group.rank == 0:
        for line in search_algorithms(settings.log_dir):
            print(line)
    else:
        take_first_algorithms()
    if group.ranks > 1:
        group.doing("trying algorithms for matrix products")
        model.rehearse()
        chosen = group.gather(chosen_algorithms() if group.rank == 0 else None)[0]
        if group.rank > 0:
            for line in adopt_algorithms(chosen):
                print(f"{group.names[group.rank]}: {line}", file=sys.stderr)


def accumulation_steps(settings, ranks):
    """How many micro-batches of each process make a step."""
    micro_batches = settings.batch_size * settings.sequence_length * ranks
    total = settings.total_batch_tokens or micro_batches
    if total % micro_batches:
        nearest = max(1, round(total / micro_batches)) * micro_batches
        raise UserError(
            f"the tokens of a step (-d) must be a multiple of B * T * processes = {settings.batch_size} * {settings.sequence_length} * {ranks} = "
            f"{micro_batches}, got {total}: {nearest} is the nearest"
        )
    return total // micro_batches


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
    if model.group.ranks > 1:
        rows += [("process", name) for name in model.group.names]
    for name, value in rows:
        print(f"| {name:<22} | {'' if value is None else value!s:<56} |")
    print(f"memory, allocated once:\n{model.arena.table()}")


def run(argv):
    """Train as the command line asks. Returns the exit code: 0, or 130 if the run was stopped."""
    settings = choose_machine(parse_settings(argv))
    group, code = join(settings, settings.device), 0
    try:
        with only_first_speaks(group):
            train(settings, group)
    except Stopped as stopped:
        if group.rank == 0:
            print(stopped, file=sys.stderr)
        code = 128 + signal.SIGINT
    except SharedError:
        group.close()
        if group.rank == 0:
            raise
        return 2
    except KeyboardInterrupt:
        group.fail("stopped at once, by Ctrl-C")
        print("\nstopped at once", file=sys.stderr)
        code = 128 + signal.SIGINT
        if group.ranks == 1:
            return code
        end_process(code)
    except BaseException as error:
        if group.ranks == 1:
            raise
        traceback.print_exc()  # first of all: when the others end, the launcher ends this process, too
        group.fail(f"{type(error).__name__}: {error}")
        end_process(1)
    group.doing("ending")
    group.close()
    return code


@contextlib.contextmanager
def only_first_speaks(group):
    """What other processes than the first would print to the screen is left unsaid."""
    if group.rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def main(argv):
    """The command line. Returns the exit code: 0, 2 for a mistake of the user's, told in one line, 130 if it was stopped."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # a pipe, mpirun's for instance, gets each line when it is printed
    sys.exit(main(sys.argv[1:]))
