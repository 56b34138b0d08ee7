"""Train GPT-2:  python -m gpt2_numba.train  (--help lists the flags).

Without flags: a small model on text that every Python installation carries, on the GPU if there is one, otherwise on the CPU. Several
processes, one GPU each, train one model together: mpirun -np 8 python -m gpt2_numba.train ... Each of them runs this file from top to
bottom. What comes before the first step is in training/preparation.py.
"""

import functools
import sys

from gpt2_numba.command_line import exit_code, main_program
from gpt2_numba.config import count_parameters
from gpt2_numba.data.prefetch import Prefetcher
from gpt2_numba.parallel.agreement import together
from gpt2_numba.parallel.group import Alone
from gpt2_numba.plot import plot_losses
from gpt2_numba.training.endings import Diverged, NotSaved, Stopped, raise_shared_problem
from gpt2_numba.training.evaluation import answer_questions, sample, validate
from gpt2_numba.training.frozen_tensors import FrozenTensors
from gpt2_numba.training.gpu_info import gpu_info
from gpt2_numba.training.log_directory import log_directory
from gpt2_numba.training.logs import Logs
from gpt2_numba.training.not_finite import explain
from gpt2_numba.training.preparation import peak_tokens_per_second, prepare
from gpt2_numba.training.program import run_training
from gpt2_numba.training.rehearsal import rehearsed
from gpt2_numba.training.saver import Saver
from gpt2_numba.training.schedules import learning_rate
from gpt2_numba.training.step_reports import StepReports, StepResult
from gpt2_numba.training.stop_request import StopRequest

GRAD_CLIP = 1.0  # gradients are scaled down if their joint norm is larger
MAX_STEPS_NOT_FINITE = 3  # in a row; a run whose loss or gradient norm is not finite for longer has diverged


def train(settings, group=None):
    """Train from start to end. Returns the trained GPT2.

    settings  Settings as choose_machine returns them        group  the processes that train together; None: this one alone
    Raises an Ending if it ends otherwise (training/endings.py), UserError if something the settings ask for is not possible.
    """
    group = group or Alone()
    with log_directory(settings, group) as lock:
        return training_loop(rehearsed(prepare(settings, group)), group, lock)


def training_loop(run, group, lock):
    """All steps of a PreparedRun, whose log directory is locked. Returns the trained GPT2."""
    settings, model, run_state = run.settings, run.model, run.run_state
    log = together(group, lambda: Logs(run))
    reports = StepReports(
        run.max_steps, run.tokens_per_step, log, overlap=settings.device == "gpu",
        peak_tokens_per_second=peak_tokens_per_second(settings, model.config, group), explain=functools.partial(explain, model),
    )  # fmt: skip

    step, interrupted, frozen = run.first_step, False, FrozenTensors(run)
    with log, Prefetcher(run.train_loader) as batches, StopRequest(batches.stop_waiting) as stop, Saver(run, reports, lock) as saver:

        def asked_to_stop():  # several processes must stop at the same step, and a signal may reach only one: a step's results tell all
            return stop.requested if group.ranks == 1 else reports.stopping or interrupted

        def data_problem():  # found by a thread that checks the shards while the first steps run
            return batches.problem or run.val_loader.problem

        while True:
            last = step == run.max_steps
            saver.reached(step, position=batches.state())
            frozen.look(step)
            if group.ranks == 1 and data_problem():
                raise data_problem()
            if last:
                reports.finish()

            # Once in a while, and when the run is to end: save everything that a resumed run needs, before anything else can go wrong. The
            # request to stop is read once: a later one stops the run after the next step. Several processes stop after the same step.
            stopping, diverged = asked_to_stop(), reports.not_finite >= MAX_STEPS_NOT_FINITE
            if stopping or diverged or due(settings.checkpoint_every, step) or last and settings.final_checkpoint:
                saver.save(keep_all=diverged)
            if diverged:
                raise Diverged(step, MAX_STEPS_NOT_FINITE, settings.log_dir)
            if stopping:
                reports.finish()
                raise_shared_problem(group, data_problem())
                raise Stopped(stop.requested or "a signal to another process", step, settings, saver)

            # Once in a while, at the start and at the end: how well does the model predict text it has not seen?
            if due(settings.val_every, step, last) or settings.val_every and step == 0:
                reports.finish()
                val_loss = validate(model, run.val_loader, settings.val_batches, stop)
                if interrupted := val_loss is None:
                    continue
                print(f"val loss {val_loss:.6f}")
                log.write_validation(step, val_loss)

            # Once in a while: does it choose the right endings?
            if run.questions is not None and (due(settings.val_every, step) or last):
                reports.finish()
                score = answer_questions(model, run.questions, stop)
                if interrupted := score is None:
                    continue
                print(f"HellaSwag: {score}")
                log.write_accuracy(step, score.accuracy)

            # Once in a while: what does it write?
            if due(settings.sample_every, step, last):
                reports.finish()
                text = sample(model, run.encoding, settings.sample_tokens, stop) if group.rank == 0 else None
                if text is not None:
                    print(f"generating:\n---\n{text}\n---")

            if asked_to_stop():
                continue  # the request arrived meanwhile: save, and stop before another step
            if last:
                break

            # One step: the gradients of all micro-batches, then the update. The GPU's work is queued; its result is reported a step later.
            reports.begin(model.moment())  # starts the clock
            model.zero_grad()
            if settings.overfit_one_batch:
                batches.reset()
            micro_batches = []
            for micro_step in range(run.grad_accum_steps):
                stop.announce()
                group.doing(f"step {step + 1}, micro-step {micro_step + 1}")  # for the message if a process hangs
                inputs, targets = batches.next_batch()
                micro_batches.append((inputs, targets))
                model.forward(inputs)
                model.backward(targets, run.grad_accum_steps, last=micro_step + 1 == run.grad_accum_steps)
            log.write_layers(step)  # statistics of gradients and activations, if they are due
            rate = learning_rate(
                settings.schedule, step, run.max_steps,
                peak=settings.learning_rate, warmup_steps=settings.warmup_steps, final_fraction=settings.final_lr_fraction,
            )  # fmt: skip
            measurement = model.measure(GRAD_CLIP, stop=bool(stop.requested or data_problem()))
            result = StepResult(step, rate, measurement, run_state, micro_batches)
            if result.is_outlier(settings.skip_loss_z, settings.skip_norm_z):
                _, loss_z, _, norm_z = result.values()
                print(f"skipping the update: z-score of the loss {loss_z:.2f}, of the norm {norm_z:.2f}")
            else:
                model.update(step, rate, settings.weight_decay, rounding_seed=run_state.next_rounding_seed())
            reports.add(result, model.moment())
            if group.rank == 0 and settings.device == "gpu" and due(settings.gpu_info_every, step + 1):
                print(gpu_info())
            step += 1

    if log.path:
        group.doing("plotting the losses")
        picture = log.path.with_name("loss.png")
        try:
            plot_losses(log.path, picture, f"{model.config}, {count_parameters(model.config):,} parameters")
            print(f"wrote {log.path} and {picture}")
        except Exception as error:  # a run that has done all its steps must not fail for its picture
            print(f"warning: there is no picture of the losses: {str(error) or type(error).__name__}", file=sys.stderr)
    if saver.failed:
        raise NotSaved(step)
    return model


def due(every, step, last=False):
    """Is something that happens every `every` steps, and at the end, due before this step? 0 switches it off; it is never due at step 0."""
    return every > 0 and (last or step > 0 and step % every == 0)


def run(argv):
    """Train as the command line asks. Returns the exit code (training/program.py)."""
    return run_training(train, argv)


def main(argv):
    """The command line. Returns the exit code; a user's mistake is reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main, outlives_pipe=True)
