"""A step of several processes, with two faults.

Processes train one model, out = x · weights, on the loss ½ (out - y)², averaged over the rows of *all* processes. Each has rows of its own,
x (rows, C) and y (rows,), and the same weights (C,). In a step each computes a gradient from its rows; an all-reduce adds the gradients of
all; if the norm of the gradient of all rows is larger than max_norm, the gradient is scaled down to max_norm; then each process makes its
update, weights - learning_rate * scale * gradient. Return the weights of all processes afterwards, (ranks, C), a row for each. They must be
those that one process with all rows would find, and so all rows of the result are equal. All arrays are float64 and [r], only to be read.

With two processes of three rows each and a large max_norm it is right. With 1 row and 3 rows it is not:

    result[0, 0] is -1.0711, and must be -0.37916

And with a max_norm that is exceeded, the processes find *different* weights: from then on they train different models. There is a line that
is right only if all processes have equally many rows, and one that looks at one process where it should look at all of them. Set both
right: your lines come after them.

    python -m tutorials.check 12_mean_of_losses
"""

import numpy as np


def all_reduce(values):
    """The sum of the processes' values (numbers, or arrays of one shape): a list with one for each process -> what each of them gets."""
    return sum(values[1:], start=values[0])


def step(weights, parts, max_norm, learning_rate):
    """weights (C,); parts: a list with (x, y) for each process -> (ranks, C)."""
    gradients = []
    for x, y in parts:  # what each process does by itself
        factor = 1 / len(y) / len(parts)  # of each of its rows
        # your lines:
        # end of your lines
        gradients.append(factor * (x @ weights - y) @ x)
    total = all_reduce(gradients)
    results = []
    for gradient in gradients:  # each again
        norm = np.sqrt((gradient**2).sum())
        # your lines:
        # end of your lines
        scale = min(1, max_norm / norm)
        results.append(weights - learning_rate * scale * total)
    return np.array(results)
