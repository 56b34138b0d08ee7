"""What each training step came to, told while the GPU is already at work on the next one.

The loss and the norm of a step are made on the GPU. A host that waited for them before it asked for the next step would leave the GPU idle
as long as it takes to ask. So the numbers are sent on their way, the next step is asked for, and only then they are looked at.
"""

import math

from gpt2_numba.training.log import Throughput, step_line


class StepResult:
    """Loss (nats per token), gradient norm and their z-scores of one step; whoever looks at them first waits for the GPU."""

    def __init__(self, step, learning_rate, wait, course):
        """wait: a function that gives (loss, norm, stopping): see GPT2.measure. course: its detectors take the values in, so results must be looked at in order."""
        self.step, self.learning_rate, self.end = step, learning_rate, None  # the end is known once the step has been asked for
        self._wait, self._course = wait, course
        self._values = None
        self.stopping = False  # whether any process had been asked to stop; known once the values have been looked at

    def values(self):
        """(loss, its z-score, norm, its z-score)"""
        if self._values is None:
            loss, norm, self.stopping = self._wait()
            self._values = loss, self._course.loss_outliers.update(loss), norm, self._course.norm_outliers.update(norm)
        return self._values

    def is_outlier(self, loss_threshold, norm_threshold):
        """True if the z-score of loss or norm is known and above its threshold. A threshold of 0 is off; if both are, nothing is waited for."""
        if loss_threshold == norm_threshold == 0:
            return False
        _, loss_z, _, norm_z = self.values()
        pairs = (loss_z, loss_threshold), (norm_z, norm_threshold)
        return any(threshold != 0 and math.isfinite(z) and z > threshold for z, threshold in pairs)


class StepReports:
    """Prints and logs the results of steps, in order, each when the next has been asked for."""

    def __init__(self, max_steps, tokens_per_step, log, overlap, peak_tokens_per_second=None):
        """overlap: tell of a step when the next has been asked for, else at once. peak_tokens_per_second: what the chip could do, for MFU."""
        self._max_steps, self._log, self._peak = max_steps, log, peak_tokens_per_second
        self._tokens_per_step, self._throughput = tokens_per_step, Throughput(tokens_per_step)
        self._overlap, self._waiting, self._begin = overlap, None, None
        self.stopping = False  # True if a step that has been told of had been asked to be the last, in any process

    def begin(self, moment):
        """A step begins. moment: now (gpu/moment.py)."""
        if self._waiting is None:
            self._begin = moment

    def add(self, result, moment):
        """A step has been asked for, up to `moment`: tell of the one before it, or of this one if nothing overlaps."""
        self.finish()
        self._waiting, result.end = result, moment
        if not self._overlap:
            self.finish()

    def finish(self):
        """Tell of the last step. Waits until it is done: call it before anything that wants to know, or be told, where the run stands."""
        if self._waiting is None:
            return
        result, self._waiting = self._waiting, None
        loss, loss_z, norm, norm_z = result.values()
        self.stopping = self.stopping or result.stopping
        # From the end of one step to the end of the next: what lies between the steps counts, too.
        seconds, self._begin = result.end.seconds_since(self._begin), result.end
        tokens_per_second = self._throughput.update(seconds)
        mfu = self._tokens_per_step / seconds / self._peak if self._peak else None
        seconds_left = self._throughput.seconds_left(self._max_steps - result.step - 1)
        print(
            step_line(
                result.step,
                self._max_steps,
                loss,
                loss_z,
                norm,
                norm_z,
                result.learning_rate,
                seconds,
                mfu,
                tokens_per_second,
                seconds_left,
            )
        )
        self._log.write_train_step(result.step, loss, result.learning_rate, norm)
