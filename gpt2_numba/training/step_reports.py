"""The result of each training step, reported while the GPU is already working on the next one.

A step whose loss or gradient norm is not finite has updated nothing: AdamW has seen to that on the GPU. The host learns of it one step late
and says so.

The loss and the gradient norm of a step are computed on the GPU. If the host waited for them before queueing the next step, the GPU would
idle while that step is being queued. So the host queues their copy, then the next step, and only then reads them.
"""

import math

from gpt2_numba.training.log import Throughput, step_line


class StepResult:
    """Loss (nats per token) and gradient norm of one step, and their z-scores. The first call that reads them waits for the GPU."""

    def __init__(self, step, learning_rate, measurement, run_state, micro_batches=()):
        """measurement: from GPT2.measure. run_state: its outlier detectors receive the values, so results must be read in order.

        micro_batches: [(inputs, targets), ...] of this process, to recompute the step if it is not finite.
        """
        self.step, self.learning_rate, self.micro_batches = step, learning_rate, micro_batches
        self.end = None  # StepReports.add sets it, when the whole step is queued
        self._measurement, self._run_state = measurement, run_state
        self._values = None
        self.stopping = False  # whether any process was asked to stop; valid once the values have been read

    def values(self):
        """Return (loss, its z-score, norm, its z-score). Waits for the GPU on the first call."""
        if self._values is None:
            loss, norm, self.stopping = self._measurement.wait()
            self._values = loss, self._run_state.loss_outliers.update(loss), norm, self._run_state.norm_outliers.update(norm)
        return self._values

    def is_outlier(self, loss_threshold, norm_threshold):
        """True if the z-score of loss or norm is above its threshold. A threshold of 0 is off; if both are off, returns without waiting.

        A value that is not finite is above every threshold.
        """
        if loss_threshold == norm_threshold == 0:
            return False
        _, loss_z, _, norm_z = self.values()
        pairs = (loss_z, loss_threshold), (norm_z, norm_threshold)
        return any(threshold != 0 and z > threshold for z, threshold in pairs)


class StepReports:
    """Prints and logs the results of steps in order; with overlap, each after the next step has been queued."""

    def __init__(self, max_steps, tokens_per_step, log, overlap, peak_tokens_per_second=None, explain=None):
        """log: Logs, or MainLog. overlap: report a step after the next is queued, not at once. peak_tokens_per_second: of all chips, for MFU.

        explain: function of the micro-batches of a step that is not finite; returns a line that says where that begins (not_finite.py).
        """
        self._max_steps, self._log, self._peak, self._explain = max_steps, log, peak_tokens_per_second, explain
        self._tokens_per_step, self._throughput = tokens_per_step, Throughput(tokens_per_step)
        self._overlap, self._waiting, self._begin = overlap, None, None
        self.stopping = False  # True once a step has been reported during which any process was asked to stop
        self.not_finite = 0  # the latest steps, in a row, whose loss or norm was not finite

    def begin(self, moment):
        """Call at the start of a step. moment: now (gpu/moment.py)."""
        if self._waiting is None:
            self._begin = moment

    def add(self, result, moment):
        """Call when a step has been queued. Reports the step before it, or this one without overlap. moment: now, the end of the step."""
        self.finish()
        self._waiting, result.end = result, moment
        if not self._overlap:
            self.finish()

    def finish(self):
        """Report the last step, waiting for it. Call this before anything that prints, saves or reads the state of the run."""
        if self._waiting is None:
            return
        result, self._waiting = self._waiting, None
        loss, loss_z, norm, norm_z = result.values()
        self.stopping = self.stopping or result.stopping
        # From the end of one step to the end of the next, so that the time between the steps counts too.
        seconds, self._begin = result.end.seconds_since(self._begin), result.end
        tokens_per_second = self._throughput.update(seconds)
        mfu = self._tokens_per_step / seconds / self._peak if self._peak else None
        line = step_line(
            step=result.step, max_steps=self._max_steps, loss=loss, loss_z=loss_z, norm=norm, norm_z=norm_z,
            learning_rate=result.learning_rate, step_seconds=seconds, mfu=mfu, tokens_per_second=tokens_per_second,
            seconds_left=self._throughput.seconds_left(self._max_steps - result.step - 1),
        )  # fmt: skip
        print(line)
        self._log.write_train_step(
            result.step, loss, result.learning_rate, norm,
            loss_z=loss_z, norm_z=norm_z, ms=1000 * seconds, tokens_per_second=self._tokens_per_step / seconds, mfu=mfu,
        )  # fmt: skip
        self.not_finite = 0 if math.isfinite(loss) and math.isfinite(norm) else self.not_finite + 1
        if self.not_finite:
            print(f"warning: step {result.step + 1} has updated nothing, since its loss or gradient norm is not finite", flush=True)
        if self.not_finite == 1 and self._explain:
            print(f"step {result.step + 1} recomputed: {self._explain(result.micro_batches)}")
