"""Makes steps of a recorded run again, in one process: the same settings, data, parameters and kernels, so the same bits.

A run of N processes is made by one: the batches of all N are its micro-steps. Its losses and norms then agree with the log within rounding,
since sums of gradients are rounded in another order; the bits of the parameters drift apart accordingly.
"""

import contextlib
import dataclasses
import io
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import copy_to_host, gpu_available, on_host, real_gpu
from gpt2_numba.gpu.cublaslt import adopt_algorithms, chosen_algorithms
from gpt2_numba.parallel.group import Alone
from gpt2_numba.progress import Progress
from gpt2_numba.replaying.watching import watched
from gpt2_numba.training.preparation import choose_machine, make_loaders, open_start, prepare
from gpt2_numba.training.run_facts import differences
from gpt2_numba.training.schedules import learning_rate

GRAD_CLIP = 1.0  # the trainer's


class MicroBatch(NamedTuple):
    """One micro-step's tokens. places: text by row, where its first token lies in the data."""

    inputs: np.ndarray
    targets: np.ndarray
    places: list


@dataclass
class Step:
    """A step that has been made again: its number, loss (nats per token), gradient norm, z-scores, and the batches.

    row_losses  mean loss of each row, (rows of all micro-batches,) float64; None unless the step was watched
    skipped     whether the run has skipped its update (-sl, -sg)
    """

    number: int
    loss: float
    loss_z: float
    norm: float
    norm_z: float
    skipped: bool = False
    micro_batches: list = field(default_factory=list)
    row_losses: np.ndarray | None = None


class Rerun:
    """A run, at some point of it. model: GPT2; done: steps made; remarks: texts about what differs from when the run was made."""

    def __init__(self, recorded, step):
        """Prepare to make a step of a RecordedRun: open the newest checkpoint before it, or begin at the start.

        What preparing prints is dropped. Raises UserError if that is not possible, as where the data are gone.
        """
        settings, self.recorded = recorded.settings(step), recorded
        _check_device(settings, recorded.header(step))
        self._opened = None

        def open_from(settings, group):
            self._opened = recorded.start_before(step)
            restarts = self._opened is not None and recorded.restarts_data(self._opened.step, step)
            self._restart_data = restarts
            return self._opened or open_start(dataclasses.replace(settings, log_dir=None), group)

        with contextlib.redirect_stdout(io.StringIO()):
            run = prepare(choose_machine(dataclasses.replace(settings, restart_data=False)), Alone(), open_from)
        self._run, self.model, self.done, self.encoding = run, run.model, run.first_step, run.encoding
        self.ranks = recorded.processes(step)
        self._loaders = self._open_loaders()
        self.starts_at = self.done
        data = "training data"
        known = self._opened is not None and data in self._opened.facts and data in run.facts
        self.remarks = differences({data: self._opened.facts[data]}, {data: run.facts[data]}) if known else []
        if settings.device == "gpu" and real_gpu():
            adopt_algorithms(chosen_algorithms())  # a replay times none, and adds none to the run's file

    def _open_loaders(self):
        """The data loaders of all processes of the run, at the place of the checkpoint."""
        run = self._run
        if self.ranks == 1 and not self._restart_data:
            return [run.train_loader]
        groups = [SimpleNamespace(rank=rank, ranks=self.ranks, doing=lambda text: None) for rank in range(self.ranks)]
        loaders = [make_loaders(run.settings, run.model.config, group)[0] for group in groups]
        if self._opened and self._opened.states and not self._restart_data:
            for loader in loaders:
                loader.load_states([state.loader for state in self._opened.states])
        return loaders

    def _micro_batches(self):
        """The batches of the next step: one after the other of each process."""
        if self._run.settings.overfit_one_batch:
            for loader in self._loaders:
                loader.reset()
        batches = []
        for micro_step in range(self._run.grad_accum_steps):
            loader = self._loaders[micro_step % self.ranks]
            inputs, targets = loader.next_batch()
            batches.append(MicroBatch(inputs, targets, _places(loader)))
        return batches

    def make_step(self, watch=None, update=True):
        """Make the next step. Returns a Step.

        watch    None, or called with every layer function (watching.py)
        update   False: leave the parameters as they are before the update, and stay before this step's end
        """
        settings, model, run_state = self._run.settings, self.model, self._run.run_state
        batches, row_losses = self._micro_batches(), []
        with watched(model, watch) if watch else contextlib.nullcontext():
            self.compute_gradients(batches, row_losses if watch else None, begin=getattr(watch, "begin_micro_batch", None))
        loss, norm, _ = model.measure(GRAD_CLIP).wait()
        loss_z, norm_z = run_state.loss_outliers.update(loss), run_state.norm_outliers.update(norm)
        above = [threshold and z > threshold for z, threshold in ((loss_z, settings.skip_loss_z), (norm_z, settings.skip_norm_z))]
        step = Step(self.done + 1, loss, loss_z, norm, norm_z, any(above), batches, np.concatenate(row_losses) if watch else None)
        if update:
            if not step.skipped:
                rate = learning_rate(
                    settings.schedule, self.done, self._run.max_steps,
                    peak=settings.learning_rate, warmup_steps=settings.warmup_steps, final_fraction=settings.final_lr_fraction,
                )  # fmt: skip
                model.update(self.done, rate, settings.weight_decay, rounding_seed=run_state.next_rounding_seed())
            self.done += 1
        return step

    def compute_gradients(self, batches, row_losses=None, begin=None, parts=None):
        """The gradients of micro-batches, accumulated from zero. The losses wait for the model's measure.

        row_losses  list to which each batch's mean losses by row are appended; None: they are not fetched
        begin       called with (inputs, targets) before each batch
        parts       of how many batches of B rows the gradient is the mean; None: of these
        """
        model = self.model
        model.zero_grad()
        for number, (inputs, targets, _) in enumerate(batches, start=1):
            if begin:
                begin(inputs, targets)
            share = len(batches) if parts is None else parts * model.B / len(inputs)
            model.forward(inputs)
            model.backward(targets, share, last=number == len(batches))
            if row_losses is not None:
                losses = model.activations(*inputs.shape).losses
                row_losses.append(
                    np.reshape(losses if on_host(losses) else copy_to_host(losses), inputs.shape).mean(axis=1, dtype=np.float64)
                )

    def row_norms(self, step):
        """The norm of the gradient of each row's own mean loss, as if the row were the whole batch: (rows of all micro-batches,) float64.

        The model's gradients are overwritten. All passes together take about as long as the step.
        """
        norms = []
        with Progress("gradients of single rows", sum(len(batch.inputs) for batch in step.micro_batches), "rows") as progress:
            for inputs, targets, places in step.micro_batches:
                for row in range(len(inputs)):
                    self.compute_gradients([MicroBatch(inputs[row : row + 1], targets[row : row + 1], places)])
                    norms.append(self.model.measure(GRAD_CLIP).wait()[1])
                    progress.advance()
        return np.array(norms)

    def loss_and_norm_without(self, step, rows):
        """(loss, norm) that a step would have without some of its rows: the mean over the others. None if there are no others.

        rows: numbers of rows, counted through all micro-batches. The model's gradients are overwritten.
        """
        kept, first, left = [], 0, sum(len(batch.inputs) for batch in step.micro_batches) - len(rows)
        if not left:
            return None
        for inputs, targets, places in step.micro_batches:
            mine = [row for row in range(len(inputs)) if first + row not in rows]
            first += len(inputs)
            if mine:
                kept.append(MicroBatch(inputs[mine], targets[mine], places))
        losses = []
        self.compute_gradients(kept, losses, parts=left / self.model.B)
        _, norm, _ = self.model.measure(GRAD_CLIP).wait()
        return float(np.concatenate(losses).mean()), norm


def _check_device(settings, header):
    """Raise UserError if this machine has no device of the kind on which the run was made."""
    if settings.device == "gpu" and not gpu_available():
        raise UserError(
            f"the run was made with kernels on {header.get('machine', {}).get('GPU', 'a GPU')}, and this machine has no GPU: replay it on one, "
            "or set NUMBA_ENABLE_CUDASIM=1 for the simulator, if the model is tiny"
        )
    if settings.precision == "fp8":
        raise UserError("replay does not look into runs with --precision fp8: their layers have other arguments")
    if settings.device == "cpu" and settings.precision == "bf16":
        raise UserError("the log names a run in bf16 on a CPU, which there is not: it was altered")


def _places(loader):
    """Where the rows of the batch just read by a DataLoader lie, as text."""
    start = int(loader.sample_order[loader.current_sample - 1]) * loader.sample_tokens + loader.rank * loader.B * loader.T
    name = loader.shard_name(int(loader.shard_order[loader.current_shard]))
    return [f"{name}, tokens {first:,} to {first + loader.T - 1:,}" for first in range(start, start + loader.B * loader.T, loader.T)]
