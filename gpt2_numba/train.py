"""Train GPT-2:  python -m gpt2_numba.train  (--help lists the flags).

Without flags: a small model on text that every Python carries, on the GPU if there is one, else on the CPU. Several processes, a GPU each, train
one model together: mpirun -np 8 python -m gpt2_numba.train ... Each of them runs this file from top to bottom.
What comes before the first step is in preparation.py.
"""

import contextlib
import os
import signal
import sys
import traceback
from dataclasses import replace

import numpy as np

from gpt2_numba.command_line import exit_code
from gpt2_numba.config import count_parameters, parameter_shapes
from gpt2_numba.data.multiple_choice import Score
from gpt2_numba.data.prefetch import Prefetcher
from gpt2_numba.errors import SharedError
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.parallel.agreement import check_agreement, facts_of_files, facts_of_settings, facts_of_versions, together
from gpt2_numba.parallel.group import Alone
from gpt2_numba.parallel.start import join
from gpt2_numba.parallel.watch import end_process
from gpt2_numba.plot import plot_losses
from gpt2_numba.preparation import (
    accumulation_steps,
    choose_attention,
    choose_kernel_set,
    choose_machine,
    choose_matmuls,
    choose_model,
    choose_precision,
    files_of,
    largest_batch_size,
    load_start,
    make_loaders,
    make_model,
    make_questions,
    open_start,
    peak_tokens_per_second,
    print_overview,
)
from gpt2_numba.resume import Course, save
from gpt2_numba.step_reports import StepReports, StepResult
from gpt2_numba.training.checkpoint import CheckpointFailed, done_checkpoints
from gpt2_numba.training.gpu_info import gpu_info
from gpt2_numba.training.log import MainLog
from gpt2_numba.training.sampler import Xorshift64Star, sample_from_logits
from gpt2_numba.training.schedules import learning_rate
from gpt2_numba.training.settings import parse_settings
from gpt2_numba.training.stop_request import StopRequest

GRAD_CLIP = 1.0  # largest norm of all gradients together
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
    kernels = each(choose_kernel_set, settings, config)
    each(choose_attention, settings)
    if settings.batch_size == "auto":
        settings = replace(settings, batch_size=min(group.gather(each(largest_batch_size, settings, config, group.ranks, kernels))))
    grad_accum_steps = each(accumulation_steps, settings, group.ranks)
    train_loader, val_loader = each(make_loaders, settings, config, group)
    questions = each(make_questions, settings, config, group)
    check_agreement(
        group, facts_of_files(files_of(settings)) | {"checkpoint to resume from": None if start_from is None else start_from.step}
    )
    tokens_per_step = settings.batch_size * settings.sequence_length * grad_accum_steps * group.ranks
    max_steps = settings.max_steps if settings.max_steps > 0 else max(1, train_loader.num_tokens // tokens_per_step)

    group.doing("preparing the model")
    model = each(make_model, settings, config, group, kernels)
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
            if group.rank == 0 and settings.device == "gpu" and settings.gpu_info_every > 0 and (step + 1) % settings.gpu_info_every == 0:
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
