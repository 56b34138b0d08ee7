"""A batch that does not fit.

The mean loss of a batch, and its gradient, from micro-batches of at most ROWS rows.

`add_gradient(grads, weights, x, y, scale)` is a small forward and backward pass in one. It takes at most ROWS rows at a time, since more do
not fit into memory; it *adds* to `grads` the gradient of the mean loss of these rows, times `scale`, and returns the mean loss of these
rows, not scaled. Write `accumulate(grads, weights, x, y)`: cut the rows of the batch, from the first to the last, into pieces of ROWS rows;
if their number is not a multiple of ROWS, the last piece is shorter. At the end `grads` must hold the gradient of the mean loss of *all*
rows, and the function returns that mean loss, a number: the result of a machine with memory for the whole batch.

All arrays are float64: [w] `grads` (C,), which is full of NaN before the call; [r] `weights` (C,), `x` (rows, C), `y` (rows,), for any
number of rows > 0. On paper: ROWS = 4 and six rows, whose losses are 1, 1, 1, 1, 4, 4. What is their mean, and what is the mean of the two
means?

    python -m tutorials.check 10_accumulate
"""

ROWS = 4


def add_gradient(grads, weights, x, y, scale):
    """grads += scale times the gradient of the mean of ½ (x · weights - y)² over these rows. Returns that mean."""
    if len(y) > ROWS:
        raise MemoryError(f"a micro-batch has at most {ROWS} rows, got {len(y)}")
    error = x @ weights - y
    grads += scale * (x * error[:, None]).mean(axis=0)
    return (error * error).mean() / 2


def accumulate(grads, weights, x, y):
    """grads (C,) becomes the gradient of the mean loss of all rows. Returns that mean loss."""
    # your lines:
    grads[:] = 0
    loss = 0.0
    for start in range(0, len(y), ROWS):
        rows = slice(start, start + ROWS)
        share = len(y[rows]) / len(y)
        loss += share * add_gradient(grads, weights, x[rows], y[rows], share)
    return loss
    # end of your lines
