"""How much must a launch move and compute, at least?

For each of the three launches below, return a pair (bytes, FLOP). Bytes: each array that is read [r] or overwritten [w] counts once, one
that is added to [+] twice, since it is read and written. A number has `itemsize` bytes, but 4 in `lse`, which keeps a number of each query
and head for backward. FLOP: two for each multiply-add of the matrix products; nothing else counts. Rows: N = B * T.

    residual_forward     out [w] = inp + branch [r]; all are (N, C). No product.
    matmul_backward      dinp [w] (N, C) = dout weight          dweight [+] (OC, C) += doutᵀ inp          dbias [+] (OC,) += sum of dout's rows
                         dout [r] (N, OC), inp [r] (N, C), weight [r] (OC, C). Two products; the sum for dbias does not count as FLOP.
    attention_forward    qkv [r] (N, 3C), out [w] (N, C), lse [w] (B, NH, T). Each of the NH heads of a sequence has C / NH channels. Two
                         products: q · k for every pair of a query and a key that it may see, itself included; and weight times v for
                         every such pair. Only those pairs count.

Return {"residual_forward": (bytes, FLOP), ...}, integers.

    python -m tutorials.check 13_bytes_and_flops
"""


def bytes_and_flops(B, T, C, OC, NH, itemsize):
    """{launch: (bytes, FLOP)}."""
    N = B * T
    # your lines:
    pairs = B * NH * T * (T + 1) // 2
    parameters = OC * C + OC
    return {
        "residual_forward": (3 * N * C * itemsize, 0),
        "matmul_backward": ((N * OC + N * C + OC * C + N * C + 2 * parameters) * itemsize, 2 * 2 * N * C * OC),
        "attention_forward": (4 * N * C * itemsize + 4 * B * NH * T, 2 * 2 * pairs * (C // NH)),
    }
    # end of your lines
