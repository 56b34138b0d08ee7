"""The layers of GPT-2, one file each: what it computes, how to differentiate it, and both in NumPy and in plain CUDA kernels.

Read them in this order: residual, gelu, layernorm, encoder, matmul, attention, classifier, global_norm, adamw. Before the first one, read
gpu/block_sum.py, the one tool that the kernels share. The kernels that train fastest are in layers/fast.

Each file has the same parts. The docstring: formulas, the backward derived, a table of the arrays. Then the reference in NumPy, the
kernels, and last the launchers, which are the functions that the model calls. A launcher checks its arrays and looks at their type: NumPy
arrays go to the reference (attention's to on_cpu.py, the same in tiles), device arrays to the kernel. Its checks are written as "N C" for a
shape, "N 3C" if the second size is 3 * C, and "f32 N" for a shape and a type (gpu/argument_checks.py).

A `d` in front of a name is the derivative of the training loss: dinp[n, c] is the rate at which the loss changes as inp[n, c]
increases. Every backward pass here is derived by one rule:

    Raise one number of an input by a tiny ε. See how much each number of out moves. Multiply by its dout, add up, divide by ε.
    What still contains ε after that is dropped, since ε is as small as one likes.

    | letter | meaning                          | letter | meaning                                              |
    | ------ | -------------------------------- | ------ | ---------------------------------------------------- |
    | B      | sequences in a batch             | NH, HS | attention heads; channels of a head, HS = C / NH     |
    | T      | tokens of a sequence             | OC     | output channels of a linear layer                    |
    | N      | B * T: rows, one for each token  | V, Vp  | vocabulary; the same, padded to a multiple of 128    |
    | C      | channels                         | maxT   | the longest sequence that the model can take         |

In the tables of arrays, [r] is read, [w] overwritten, [rw] updated in place, and [+] accumulated into: what is there already stays in the
sum. The model has L Transformer blocks, indexed l; in a kernel, a block is a block of threads.
"""
