"""The layers of GPT-2, a file each: what it computes, how to differentiate it, and both in NumPy and in plain CUDA kernels.

Read them in this order: residual, gelu, layernorm, encoder, matmul, attention, classifier, global_norm, adamw. Before the first one,
gpu/block_sum.py, the one tool that the kernels share. The kernels that train fastest are in layers/fast.

Each file has the same parts. The docstring: formulas, the backward derived, a table of the arrays. Then the reference in NumPy, the kernels, and
last the launchers, which are the functions that the model calls. A launcher checks its arrays and looks at their type: NumPy arrays go to the
reference, device arrays to the kernel. Its checks are written as "N C" for a shape and "f32 N" for a shape and a type (gpu/check.py).

A `d` in front of a name is the derivative of the training loss: dinp[n, c] says how much the loss changes for each unit that inp[n, c] is
raised. Every backward here is derived by one rule:

    Raise one number of an input by a tiny ε. See how much each number of out moves. Multiply by its dout, add up, divide by ε.

    | letter | meaning                          | letter | meaning                                              |
    | ------ | -------------------------------- | ------ | ---------------------------------------------------- |
    | B      | sequences in a batch             | NH, HS | attention heads; channels of a head, HS = C / NH     |
    | T      | tokens of a sequence             | OC     | output channels of a linear layer                    |
    | N      | B * T: rows, one for each token  | V, Vp  | vocabulary; the same, padded to a multiple of 128    |
    | C      | channels                         | maxT   | the longest sequence that the model can take         |

In the tables of arrays, [r] is read, [w] overwritten, and [+] accumulated into: what is there already stays in the sum.
"""
