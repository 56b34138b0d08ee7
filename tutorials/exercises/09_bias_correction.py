"""A run that stumbles when it is resumed.

    m = β1 m + (1 - β1) g        v = β2 v + (1 - β2) g²        m̂ = m / (1 - β1^t)        v̂ = v / (1 - β2^t)
    params -= RATE · m̂ / (sqrt(v̂) + EPS)

`train` makes one step of Adam for each row of `grads`, float64 (steps, count), and returns params, m and v, all (count,). `steps_done` is
the number of steps that the run has made before this call: 0 at the beginning of a run; and if a run is resumed from a checkpoint, it is
what the checkpoint says, and params, m and v are what the checkpoint holds. [r] All arguments are only read.

Runs that are never stopped are right to the last digit. But if a run is stopped and resumed, its loss jumps. It is back after some dozen
steps, and nobody asks again. In the first step after it was resumed, every weight moved 2.2 times as far as without the stop. Mend it with
one line, in one of the three marked places.

    python -m tutorials.check 09_bias_correction
"""

import numpy as np

RATE, BETA1, BETA2, EPS = 0.01, 0.9, 0.95, 1e-8


def train(params, m, v, grads, steps_done):
    """A step for each row of grads. Returns params, m, v."""
    for number, g in enumerate(grads):
        # your lines:
        # end of your lines
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g * g
        t = number + 1
        # your lines:
        # end of your lines
        m_hat, v_hat = m / (1 - BETA1**t), v / (1 - BETA2**t)
        # your lines:
        # end of your lines
        params = params - RATE * m_hat / (np.sqrt(v_hat) + EPS)
    return params, m, v
