"""A step of ZeRO-1.

Several processes train one model. params[rank] (P,) are the parameters of a process [+], the same numbers at all of them; grads[rank] (P,)
its gradients [r], already divided by the rows of all processes. Process r owns the positions bounds[r] up to bounds[r + 1], and keeps
AdamW's m[r] and v[r] [+] of these positions only, so m[r][0] belongs to params[r][bounds[r]]. Parts may have different lengths, or be
empty. All arrays are float64. Do one step, in place:

    1. sum the gradients, so that each process has the sum of its part;
    2. the norm of all gradients together is the root of the sum of their squares; if it is larger than max_norm, gradients are multiplied by
       max_norm / norm, else by 1;
    3. each process updates its part, with its m and v (adamw_update is given);
    4. all get all parameters.

What one process wants from another goes through the three functions that are given. In this exercise all processes run in one function, so a
loop over the ranks is what they would do at the same time; in it process `rank` may use params[rank], grads[rank], m[rank], v[rank].

    python -m tutorials.check 12_zero_step
"""

import numpy as np


def reduce_scatter(arrays, bounds):
    """arrays: one for each process, (P,). Returns the part that each process then has: the sum of part r at process r. A list by rank."""
    total = sum(arrays[1:], start=arrays[0])
    return [total[start:stop].copy() for start, stop in zip(bounds, bounds[1:])]


def all_gather(parts):
    """parts: one array for each process. Returns what each process then has: all parts, one after the other, (P,). A list by rank."""
    return [np.concatenate(parts) for _ in parts]


def all_reduce(numbers):
    """numbers: one for each process -> their sum, which each process gets."""
    return sum(numbers)


def adamw_update(params, grads, m, v, learning_rate, t, beta1=0.9, beta2=0.95, eps=1e-8):
    """A step of AdamW in place, without weight decay. params, m, v [+] and grads [r] have one shape."""
    m += (1 - beta1) * (grads - m)
    v += (1 - beta2) * (grads * grads - v)
    params -= learning_rate * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)


def zero_step(params, grads, m, v, bounds, learning_rate, max_norm, t):  # parameters: those of the docstring
    """params, grads, m, v: lists of arrays by rank; bounds: ranks + 1 positions; t: the number of the step, from 1."""
    # your lines:
    sums = reduce_scatter(grads, bounds)
    norm = np.sqrt(all_reduce([(part * part).sum() for part in sums]))
    scale = min(1, max_norm / norm)
    updated = []
    for rank, part in enumerate(sums):
        own = params[rank][bounds[rank] : bounds[rank + 1]].copy()
        adamw_update(own, scale * part, m[rank], v[rank], learning_rate, t)
        updated.append(own)
    for rank, everything in enumerate(all_gather(updated)):
        params[rank][:] = everything
    # end of your lines
