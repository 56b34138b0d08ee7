"""A run that gets better, and then worse.

`train` fits a line by gradient descent: in each step the gradients of all micro-batches are added up in `grads`, and the weights move against
them. Nobody sets `grads` to zero. On the first data that the check uses, the losses should be the upper ones, and they are the lower ones:

    11.1, 9.48, 5.49, 6.22, 3.89, 2.68, 2.47, 1.34, 2.27, 1.21
    11.1, 8.46, 3.29, 0.946, 0.29, 1.23, 4.97, 4.89, 15.7, 11.2

Set `grads` to zero in the right place; six are marked. Before you try, find out with a pencil what each of them would do: two stop the
training altogether, one throws away all micro-batches of a step but the last, one cures the first step only, and one all steps but the
first.

`x`, float64 (steps, micro_batches, rows, 2), and `y`, (steps, micro_batches, rows), are the rows of each micro-batch; `weights` is (2,). [r]
All three are only read.

    python -m tutorials.check 10_find_the_zero
"""

import numpy as np

RATE = 0.1


def add_gradient(grads, weights, x, y, scale):
    """grads += scale times the gradient of the mean of ½ (x · weights - y)² over these rows. Returns scale times that mean."""
    error = x @ weights - y
    grads += scale * (x * error[:, None]).mean(axis=0)
    return scale * (error * error).mean() / 2


def train(weights, x, y):
    """A step for each x[step]. Returns the losses, one for each step, before its update, and the weights at the end."""
    weights, grads = weights.copy(), np.zeros(2)
    add_gradient(grads, weights, x[0, 0], y[0, 0], 1.0)  # a rehearsal: it compiles the kernels, before the clock of the first step starts
    losses, micro_batches = [], x.shape[1]
    # your lines:
    # end of your lines
    for step in range(len(x)):
        # your lines:
        grads[:] = 0
        # end of your lines
        loss = 0.0
        for micro_step in range(micro_batches):
            # your lines:
            # end of your lines
            loss += add_gradient(grads, weights, x[step, micro_step], y[step, micro_step], 1 / micro_batches)
            # your lines:
            # end of your lines
        # your lines:
        # end of your lines
        weights -= RATE * grads
        # your lines:
        # end of your lines
        losses.append(loss)
    return losses, weights
