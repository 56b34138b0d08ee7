"""Train GPT-2:  python -m gpt2_numba.train  (--help lists the flags).

Without flags: a small model on text that every Python installation carries, on the GPU if there is one, otherwise on the CPU. Several
processes, one GPU each, train one model together: mpirun -np 8 python -m gpt2_numba.train ... Each of them runs this file from top to
bottom. What comes before the first step is in training/preparation.py.
"""

import signal
import sys
import traceback

from gpt2_numba.command_line import exit_code
from gpt2_numba.config import count_parameters
from gpt2_numba.data.prefetch import Prefetcher
from gpt2_numba.errors import SharedError
from gpt2_numba.parallel.group import Alone, only_first_prints
from gpt2_numba.parallel.start import join
from gpt2_numba.parallel.watch import end_process
from gpt2_numba.plot import plot_losses
from gpt2_numba.training.evaluation import answer_questions, sample, validate
from gpt2_numba.training.gpu_info import gpu_info
from gpt2_numba.training.log import MainLog
from gpt2_numba.training.preparation import choose_machine, peak_tokens_per_second, prepare
from gpt2_numba.training.resume import save_or_warn
from gpt2_numba.training.schedules import learning_rate
from gpt2_numba.training.settings import parse_settings
from gpt2_numba.training.step_reports import StepReports, StepResult
from gpt2_numba.training.stop_request import NotSaved, Stopped, StopRequest

GRAD_CLIP = 1.0  # gradients are scaled down if their joint norm is larger


def train(settings, group=None):
    """Train from start to end. Returns the trained GPT2.

    settings  Settings as choose_machine returns them        group  the processes that train together; None: this one alone
    Raises Stopped if the run was asked to stop, NotSaved if it is done but its last checkpoint could not be written, UserError if something
    the settings ask for is not possible.
    """
    group = group or Alone()
    run = prepare(settings, group)
    settings, model, run_state = run.settings, run.model, run.run_state
    log = MainLog(settings.log_dir if group.rank == 0 else None, append=run.first_step > 0)
    peak = peak_tokens_per_second(settings, model.config, group)
    reports = StepReports(run.max_steps, run.tokens_per_step, log, overlap=settings.device == "gpu", peak_tokens_per_second=peak)

    step, saved, saved_at = run.first_step, True, run.first_step
    with Prefetcher(run.train_loader) as batches, StopRequest() as stop:

        def asked_to_stop():  # several processes learn it from each other, with the results of a step
            return stop.requested if group.ranks == 1 else reports.stopping

        while True:
            last = step == run.max_steps

            # Once in a while, and when asked to stop: save everything that a resumed run needs, before anything else can go wrong. The
            # request is read once: a later signal stops the run after the next step. Several processes stop after the same step.
            stopping = asked_to_stop()
            if settings.log_dir and step > saved_at and (due(settings.checkpoint_every, step, last) or stopping):
                reports.finish()
                saved = save_or_warn(settings, step, model, batches, run_state)
                saved_at = step if saved else saved_at
            if stopping and not last:
                reports.finish()
                break

            # Once in a while: how well does the model predict text it has not seen?
            if due(settings.val_every, step, last) or settings.val_every and step == 0:
                reports.finish()
                val_loss = validate(model, run.val_loader, settings.val_batches)
                print(f"val loss {val_loss:.6f}")
                log.write_validation(step, val_loss)

            # Once in a while: does it choose the right endings?
            if run.questions and (due(settings.val_every, step, last) or last):
                reports.finish()
                score = answer_questions(model, run.questions)
                print(f"HellaSwag: {score}")
                log.write_accuracy(step, score.accuracy)

            # Once in a while: what does it write?
            if due(settings.sample_every, step, last):
                reports.finish()
                if group.rank == 0:
                    print(f"generating:\n---\n{sample(model, run.encoding, settings.sample_tokens)}\n---")

            if last:
                reports.finish()
                break
            if asked_to_stop():
                continue  # the request arrived meanwhile: save, and stop before another step

            # One step: the gradients of all micro-batches, then the update. The GPU's work is queued; its result is reported a step later.
            reports.begin(model.moment())  # starts the clock
            model.zero_grad()
            if settings.overfit_one_batch:
                batches.reset()
            for micro_step in range(run.grad_accum_steps):
                stop.announce()
                group.doing(f"step {step + 1}, micro-step {micro_step + 1}")  # for the message if a process hangs
                inputs, targets = batches.next_batch()
                model.forward(inputs)
                model.backward(targets, run.grad_accum_steps, last=micro_step + 1 == run.grad_accum_steps)
            rate = learning_rate(
                settings.schedule, step, run.max_steps,
                peak=settings.learning_rate, warmup_steps=settings.warmup_steps, final_fraction=settings.final_lr_fraction,
            )  # fmt: skip
            result = StepResult(step, rate, model.measure(GRAD_CLIP, stop=bool(stop.requested)), run_state)
            if result.is_outlier(settings.skip_loss_z, settings.skip_norm_z):
                _, loss_z, _, norm_z = result.values()
                print(f"skipping the update: z-score of the loss {loss_z:.2f}, of the norm {norm_z:.2f}")
            else:
                model.update(step, rate, settings.weight_decay, rounding_seed=run_state.next_rounding_seed())
            reports.add(result, model.moment())
            if group.rank == 0 and settings.device == "gpu" and settings.gpu_info_every > 0 and (step + 1) % settings.gpu_info_every == 0:
                print(gpu_info())
            step += 1

    if stopping and not last:
        raise Stopped(stop.requested or "a signal to another process", step, settings, saved)
    if log.path:
        group.doing("plotting the losses")
        picture = log.path.with_name("loss.png")
        try:
            plot_losses(log.path, picture, f"{model.config}, {count_parameters(model.config) / 1e6:.1f} M parameters")
            print(f"wrote {log.path} and {picture}")
        except Exception as error:  # a run that has done all its steps must not fail for its picture
            print(f"warning: there is no picture of the losses: {error}", file=sys.stderr)
    if not saved:
        raise NotSaved(f"all {step} steps are done, but the last checkpoint was not written: see the warning above")
    return model


def due(every, step, last):
    """Is something that happens every `every` steps, and at the end, due before this step? 0 switches it off; it is never due at step 0."""
    return every > 0 and (last or step > 0 and step % every == 0)


# --------------------------------------------------------------------------------------------------- the command line


def run(argv):
    """Train as the command line asks. Returns the exit code: 0, 130 if the run was stopped, 1 if its last checkpoint was not written."""
    settings = choose_machine(parse_settings(argv))
    group, code = join(settings, settings.device), 0
    try:
        with only_first_prints(group):
            train(settings, group)
    except (Stopped, NotSaved) as ending:
        if group.rank == 0:
            print(ending, file=sys.stderr)
        code = ending.code
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


def main(argv):
    """The command line. Returns the exit code: 0, 130 if the run was stopped, 2 for a user's mistake, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # a pipe, such as mpirun's, gets each line when it is printed
    sys.exit(main(sys.argv[1:]))
