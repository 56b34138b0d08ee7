"""The order in which the fast kernels are called: the mathematics of layer_order.py (read that first), with neighbouring layers fused.

Memory traffic is what the small layers cost, so whatever two neighbours both read is read once:

    residual_layernorm_forward    adds a branch to the residual stream and normalises the sum while it is in registers
    dinp_sums, dbias              a bias gradient is the column sum of a linear layer's dout: the kernel that writes dout adds it up.
                                  LayerNorm's backward does so for attproj and fcproj, whose dout is dresidual, GELU's for fc
    gelu_to, before_gelu          GELU and its derivative in the epilogue of cuBLASLt's product (gelu_fusion 1 and 2)

residual_backward is no work at all: the branch reads dresidual where it is, instead of a copy.

The launches are recorded as a CUDA graph (gpu/graph.py). So what changes from step to step lies in device memory, and the parameters are
updated in one launch, by a table of ranges (gpu/ranges.py). `model` is the GPT2.
"""

import itertools

import numpy as np

from gpt2_numba.config import MATRICES
from gpt2_numba.gpu.arena import zero
from gpt2_numba.layers.fast import global_norm
from gpt2_numba.layers.fast.adamw import adamw_update
from gpt2_numba.layers.fast.attention import attention_backward, attention_forward
from gpt2_numba.layers.fast.classifier import accumulate_mean, classifier_forward, classifier_forward_backward
from gpt2_numba.layers.fast.encoder import encoder_backward, encoder_forward, places_by_token
from gpt2_numba.layers.fast.gelu import gelu_backward, gelu_forward
from gpt2_numba.layers.fast.layernorm import layernorm_backward, layernorm_forward, residual_layernorm_forward
from gpt2_numba.layers.fast.matmul import matmul_backward, matmul_forward, matmul_gelu_forward


def prepare_backward(model, acts, inputs):
    """Sort the positions of the batch by token, for the encoder's backward."""
    places, pieces = places_by_token(inputs, model.config.V)
    model.write_numbers(acts.places, places)
    model.write_numbers(acts.pieces, pieces)


def forward(model, acts):
    """From acts.inputs to acts.logits."""
    p, L = model.params, model.config.L
    encoder_forward(acts.encoded, acts.inputs, p.wte, p.wpe)
    residual = acts.encoded
    layernorm_forward(acts.ln1[0], acts.ln1_mean[0], acts.ln1_rstd[0], residual, p.ln1w[0], p.ln1b[0])
    for l in range(L):
        matmul_forward(acts.qkv[l], acts.ln1[l], p.qkvw[l], p.qkvb[l])
        attention_forward(acts.atty[l], acts.lse[l], acts.qkv[l], model.memory["att_scratch"])
        matmul_forward(acts.branch, acts.atty[l], p.attprojw[l], p.attprojb[l])
        ln2 = acts.ln2[l], acts.ln2_mean[l], acts.ln2_rstd[l]
        residual_layernorm_forward(acts.residual2[l], *ln2, residual, acts.branch, p.ln2w[l], p.ln2b[l])

        if model.gelu_fusion >= 1:
            matmul_gelu_forward(acts.fch_gelu[l], acts.fch[l], acts.ln2[l], p.fcw[l], p.fcb[l])
        else:
            matmul_forward(acts.fch[l], acts.ln2[l], p.fcw[l], p.fcb[l])
            gelu_forward(acts.fch_gelu[l], acts.fch[l])
        matmul_forward(acts.branch, acts.fch_gelu[l], p.fcprojw[l], p.fcprojb[l])
        if l + 1 < L:
            after = acts.ln1[l + 1], acts.ln1_mean[l + 1], acts.ln1_rstd[l + 1]
            weight, bias = p.ln1w[l + 1], p.ln1b[l + 1]
        else:
            after, weight, bias = (acts.lnf, acts.lnf_mean, acts.lnf_rstd), p.lnfw, p.lnfb
        residual_layernorm_forward(acts.residual3[l], *after, acts.residual2[l], acts.branch, weight, bias)
        residual = acts.residual3[l]
    matmul_forward(acts.logits, acts.lnf, p.wte, None)


def losses(model, acts):
    """From acts.logits to the loss of each token, and their mean added to mean_loss. For validation: no gradients."""
    classifier_forward(acts.losses, acts.logits, acts.targets, model.config.V)
    accumulate_mean(model.memory["mean_loss"], acts.losses)


def backward(model, acts, dloss, last):
    """From acts.logits to the gradients of all parameters. dloss: with respect to each token's loss. last: the last batch of the step."""
    p, g, sums, dresidual = model.params, model.grads, model.memory["sums"], acts.dresidual
    recompute = model.options.recompute
    classifier_forward_backward(acts.losses, acts.logits, acts.targets, dloss, model.config.V)
    accumulate_mean(model.memory["mean_loss"], acts.losses)
    matmul_backward(acts.dbranch, g.wte, None, acts.logits, acts.lnf, p.wte, None)
    zero(dresidual)
    lnf = acts.residual3[-1], p.lnfw, acts.lnf_mean, acts.lnf_rstd
    layernorm_backward(dresidual, g.lnfw, g.lnfb, acts.dbranch, *lnf, sums, dinp_sums=g.fcprojb[-1])

    for l in reversed(range(model.config.L)):
        residual = acts.residual3[l - 1] if l else acts.encoded
        if recompute >= 1:
            gelu_forward(acts.fch_gelu[l], acts.fch[l])
        fused = acts.fch[l] if model.gelu_fusion >= 2 else None
        matmul_backward(acts.dfch, g.fcprojw[l], None, dresidual, acts.fch_gelu[l], p.fcprojw[l], sums, before_gelu=fused)
        if fused is None:
            gelu_backward(acts.dfch, acts.dfch, acts.fch[l], dbias=g.fcb[l], scratch=sums)
        if recompute >= 2:
            layernorm_forward(acts.ln2[l], acts.ln2_mean[l], acts.ln2_rstd[l], acts.residual2[l], p.ln2w[l], p.ln2b[l])
        dfcb = None if fused is None else g.fcb[l]
        matmul_backward(acts.dbranch, g.fcw[l], dfcb, acts.dfch, acts.ln2[l], p.fcw[l], sums)
        ln2 = acts.residual2[l], p.ln2w[l], acts.ln2_mean[l], acts.ln2_rstd[l]
        layernorm_backward(dresidual, g.ln2w[l], g.ln2b[l], acts.dbranch, *ln2, sums, dinp_sums=g.attprojb[l])

        matmul_backward(acts.dbranch, g.attprojw[l], None, dresidual, acts.atty[l], p.attprojw[l], sums)
        attention_backward(acts.dqkv, acts.dbranch, acts.atty[l], acts.lse[l], acts.qkv[l], model.memory["att_scratch"])
        if recompute >= 2:
            layernorm_forward(acts.ln1[l], acts.ln1_mean[l], acts.ln1_rstd[l], residual, p.ln1w[l], p.ln1b[l])
        matmul_backward(acts.dbranch, g.qkvw[l], g.qkvb[l], acts.dqkv, acts.ln1[l], p.qkvw[l], sums)
        ln1 = residual, p.ln1w[l], acts.ln1_mean[l], acts.ln1_rstd[l]
        layernorm_backward(dresidual, g.ln1w[l], g.ln1b[l], acts.dbranch, *ln1, sums, dinp_sums=g.fcprojb[l - 1] if l else None)
        model.gradients.layer_done(l, last)

    encoder_backward(g.wte, g.wpe, dresidual, acts.places, acts.pieces, sums, acts.inputs.shape[1])
    model.gradients.all_done(last)


def sum_of_squares(model):
    """The squares of the gradients, in partial sums: with several processes, each sums its share."""
    global_norm.sum_of_squares(model.memory["norm_partials"], model.memory["grads"], model.memory["norm_ranges"])


def norm_and_scale(model, max_norm):
    """From the partial sums to the norm of all gradients and the scale that clips it."""
    global_norm.norm_and_scale(model.memory["norm_and_scale"], model.memory["norm_partials"], max_norm)


def update(model, step, learning_rate, weight_decay, beta1, beta2, eps, rounding_seed):
    """One step of AdamW on the parameters that this process updates: what changes from step to step is written, the rest is recorded."""
    t = step + 1
    model.write_numbers(model.memory["step_values"], np.array([learning_rate, 1 - beta1**t, 1 - beta2**t], np.float32))
    model.write_numbers(model.memory["rounding_seed"], np.array([rounding_seed], np.uint32))
    constants = beta1, beta2, eps, weight_decay
    model.graphs.run(("update", *constants), lambda: _update(model, constants))


def _update(model, constants):
    arrays = "params", "grads", "m", "v", "master", "step_values", "rounding_seed", "norm_and_scale", "ranges"
    arrays = [model.memory.get(name) for name in arrays]
    state, done = model.sharing.state, 0
    # With ZeRO a matrix, of all layers, is sent to the other processes while what follows it is updated.
    if model.sharing.stage > 0:
        for name, group in itertools.groupby(state.parts(), key=lambda part: part[3].name):
            if name not in MATRICES:
                continue
            parts = list(group)
            local, _, length, _ = parts[-1]
            adamw_update(*arrays, *constants, first=done, stop=local + length)
            done = local + length
            model.group.begin()
            model.group.all_gather([(model.memory["params"][s.start : s.stop], state.bounds_within(s)) for *_, s in parts])
    adamw_update(*arrays, *constants, first=done)
    model.group.end()
