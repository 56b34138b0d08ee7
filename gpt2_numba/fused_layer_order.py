"""The order in which the fast kernels are called: the mathematics of layer_order.py (read that first), with neighbouring layers fused.

Memory traffic is what the small layers cost, so whatever two neighbours both read is read once:

    residual_layernorm_forward    adds a branch to the residual stream and normalises the sum while it is in registers
    dinp_sums, dbias              a bias gradient is the column sum of a linear layer's dout: the kernel that writes dout adds it up.
                                  LayerNorm's backward does so for attproj and fcproj, whose dout is dresidual, GELU's for fc,
                                  attention's for qkv
    matmul_gelu_forward           the GELU in the epilogue of cuBLASLt's product (gelu_fusion 1 and 2)
    before_gelu                   the GELU's derivative likewise (gelu_fusion 2)

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
from gpt2_numba.layers.fast.one_row import one_row_forward


def prepare_backward(model, acts, inputs):
    """Sort the positions of the batch by token, for the encoder's backward."""
    places, pieces = places_by_token(inputs, model.config.V)
    model.write_numbers(acts.places, places)
    model.write_numbers(acts.pieces, pieces)


def forward(model, acts, attend=None):
    """From acts.inputs to acts.logits. attend(l): does the attention of block l if it is not within the batch (inference.py)."""
    p, L = model.params, model.config.L
    encoder_forward(acts.encoded, acts.inputs, p.wte, p.wpe)
    residual = acts.encoded
    ln1 = dict(out=acts.ln1[0], mean=acts.ln1_mean[0], rstd=acts.ln1_rstd[0], weight=p.ln1w[0], bias=p.ln1b[0])
    layernorm_forward(inp=residual, **ln1)
    for l in range(L):
        matmul_forward(acts.qkv[l], acts.ln1[l], p.qkvw[l], p.qkvb[l])
        attend(l) if attend else attention_forward(acts.atty[l], acts.lse[l], acts.qkv[l], model.memory["att_scratch"])
        matmul_forward(acts.branch, acts.atty[l], p.attprojw[l], p.attprojb[l])
        ln2 = dict(out=acts.ln2[l], mean=acts.ln2_mean[l], rstd=acts.ln2_rstd[l], weight=p.ln2w[l], bias=p.ln2b[l])
        residual_layernorm_forward(residual=acts.residual2[l], inp=residual, branch=acts.branch, **ln2)

        if model.gelu_fusion >= 1:
            matmul_gelu_forward(out=acts.fch_gelu[l], before_gelu=acts.fch[l], inp=acts.ln2[l], weight=p.fcw[l], bias=p.fcb[l])
        else:
            matmul_forward(acts.fch[l], acts.ln2[l], p.fcw[l], p.fcb[l])
            gelu_forward(acts.fch_gelu[l], acts.fch[l])
        matmul_forward(acts.branch, acts.fch_gelu[l], p.fcprojw[l], p.fcprojb[l])
        if l + 1 < L:  # the LayerNorm that follows: the next block's first, or the last of all
            n = l + 1
            layernorm = dict(out=acts.ln1[n], mean=acts.ln1_mean[n], rstd=acts.ln1_rstd[n], weight=p.ln1w[n], bias=p.ln1b[n])
        else:
            layernorm = dict(out=acts.lnf, mean=acts.lnf_mean, rstd=acts.lnf_rstd, weight=p.lnfw, bias=p.lnfb)
        residual_layernorm_forward(residual=acts.residual3[l], inp=acts.residual2[l], branch=acts.branch, **layernorm)
        residual = acts.residual3[l]
    matmul_forward(acts.logits, acts.lnf, p.wte, None)


def forward_one_row(model, acts, attend):
    """The same for one row, when one text is generated: five launches for each block. The residual stream stays in one place."""
    p, residual = model.params, acts.encoded
    encoder_forward(residual, acts.inputs, p.wte, p.wpe)
    for l in range(model.config.L):
        one_row_forward(acts.qkv[l], residual, p.qkvw[l], p.qkvb[l], layernorm=(p.ln1w[l], p.ln1b[l]))
        attend(l)
        one_row_forward(residual, acts.atty[l], p.attprojw[l], p.attprojb[l], accumulate=True)
        one_row_forward(acts.fch_gelu[l], residual, p.fcw[l], p.fcb[l], layernorm=(p.ln2w[l], p.ln2b[l]), gelu=True)
        one_row_forward(residual, acts.fch_gelu[l], p.fcprojw[l], p.fcprojb[l], accumulate=True)
    one_row_forward(acts.logits, residual, p.wte, None, layernorm=(p.lnfw, p.lnfb))


def losses(model, acts):
    """From acts.logits to the loss of each token, and their mean added to mean_loss. For validation: no gradients."""
    classifier_forward(acts.losses, acts.logits, acts.targets, model.config.V)
    accumulate_mean(model.memory["mean_loss"], acts.losses)


def backward(model, acts, dloss, last):
    """From acts.logits to the gradients of all parameters. dloss: with respect to each token's loss. last: the last batch of the step."""
    p, g, sums, dresidual = model.params, model.grads, model.memory["sums"], acts.dresidual
    recompute = model.options.recompute
    classifier_forward_backward(losses=acts.losses, logits=acts.logits, targets=acts.targets, dloss=dloss, V=model.config.V)
    accumulate_mean(model.memory["mean_loss"], acts.losses)
    matmul_backward(dinp=acts.dbranch, dweight=g.wte, dbias=None, dout=acts.logits, inp=acts.lnf, weight=p.wte, scratch=None)
    zero(dresidual)
    lnf = dict(dweight=g.lnfw, dbias=g.lnfb, inp=acts.residual3[-1], weight=p.lnfw, mean=acts.lnf_mean, rstd=acts.lnf_rstd)
    layernorm_backward(dinp=dresidual, dout=acts.dbranch, **lnf, scratch=sums, dinp_sums=g.fcprojb[-1])

    for l in reversed(range(model.config.L)):
        residual = acts.residual3[l - 1] if l else acts.encoded

        # residual3 = residual2 + fcproj(gelu(fc(ln2)))
        if recompute >= 1:
            gelu_forward(acts.fch_gelu[l], acts.fch[l])
        fused = model.gelu_fusion >= 2  # the GELU's backward in the epilogue of fcproj's
        fcproj = dict(
            dweight=g.fcprojw[l], dbias=None, inp=acts.fch_gelu[l], weight=p.fcprojw[l]
        )  # dbias: the LayerNorm above has added it up
        matmul_backward(dinp=acts.dfch, dout=dresidual, **fcproj, scratch=sums, before_gelu=acts.fch[l] if fused else None)
        if not fused:
            gelu_backward(dinp=acts.dfch, dout=acts.dfch, inp=acts.fch[l], dbias=g.fcb[l], scratch=sums)
        if recompute >= 2:
            ln2 = dict(out=acts.ln2[l], mean=acts.ln2_mean[l], rstd=acts.ln2_rstd[l])
            layernorm_forward(**ln2, inp=acts.residual2[l], weight=p.ln2w[l], bias=p.ln2b[l])
        fc = dict(dweight=g.fcw[l], dbias=g.fcb[l] if fused else None, inp=acts.ln2[l], weight=p.fcw[l])
        matmul_backward(dinp=acts.dbranch, dout=acts.dfch, **fc, scratch=sums)
        ln2 = dict(
            dweight=g.ln2w[l], dbias=g.ln2b[l], inp=acts.residual2[l], weight=p.ln2w[l], mean=acts.ln2_mean[l], rstd=acts.ln2_rstd[l]
        )
        layernorm_backward(dinp=dresidual, dout=acts.dbranch, **ln2, scratch=sums, dinp_sums=g.attprojb[l])

        # residual2 = residual + attproj(attention(qkv(ln1)))
        attproj = dict(dweight=g.attprojw[l], dbias=None, inp=acts.atty[l], weight=p.attprojw[l])
        matmul_backward(dinp=acts.dbranch, dout=dresidual, **attproj, scratch=sums)
        attention = dict(out=acts.atty[l], lse=acts.lse[l], qkv=acts.qkv[l], scratch=model.memory["att_scratch"])
        attention_backward(dqkv=acts.dqkv, dbias=g.qkvb[l], dout=acts.dbranch, **attention)
        if recompute >= 2:
            ln1 = dict(out=acts.ln1[l], mean=acts.ln1_mean[l], rstd=acts.ln1_rstd[l])
            layernorm_forward(**ln1, inp=residual, weight=p.ln1w[l], bias=p.ln1b[l])
        qkv = dict(dweight=g.qkvw[l], dbias=None, inp=acts.ln1[l], weight=p.qkvw[l])
        matmul_backward(dinp=acts.dbranch, dout=acts.dqkv, **qkv, scratch=None)
        ln1 = dict(dweight=g.ln1w[l], dbias=g.ln1b[l], inp=residual, weight=p.ln1w[l], mean=acts.ln1_mean[l], rstd=acts.ln1_rstd[l])
        layernorm_backward(dinp=dresidual, dout=acts.dbranch, **ln1, scratch=sums, dinp_sums=g.fcprojb[l - 1] if l else None)
        model.gradients.layer_done(l, last)

    encoder = dict(places=acts.places, pieces=acts.pieces, scratch=sums, T=acts.inputs.shape[1])
    encoder_backward(dwte=g.wte, dwpe=g.wpe, dout=dresidual, **encoder)
    model.gradients.all_done(last)


def sum_of_squares(model):
    """The squares of the gradients, in partial sums: with several processes, each sums its share."""
    global_norm.sum_of_squares(model.memory["norm_partials"], model.memory["grads"], model.memory["norm_ranges"])


def norm_and_scale(model, max_norm):
    """From the partial sums to the norm of all gradients and the scale that clips it; not a number if norm or loss is not finite."""
    memory = model.memory
    global_norm.norm_and_scale(memory["norm_and_scale"], memory["norm_partials"], memory["mean_loss"], max_norm)


def update(model, step, learning_rate, weight_decay, beta1, beta2, eps, rounding_seed):
    """One step of AdamW on this process's parameters. What changes from step to step is written to memory; the rest is recorded."""
    t = step + 1
    model.write_numbers(model.memory["step_values"], np.array([learning_rate, 1 - beta1**t, 1 - beta2**t], np.float32))
    model.write_numbers(model.memory["rounding_seed"], np.array([rounding_seed], np.uint32))
    constants = dict(beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
    model.graphs.run(("update", *constants.values()), lambda: _update(model, constants))


def _update(model, constants):
    arrays = "params", "grads", "m", "v", "master", "step_values", "rounding_seed", "norm_and_scale", "ranges"
    arguments = {name: model.memory.get(name) for name in arrays} | constants
    state, done = model.sharing.state, 0
    # With ZeRO each matrix, of all layers, is gathered by all processes while the tensors after it are updated.
    if model.sharing.stage > 0:
        for name, group in itertools.groupby(state.parts(), key=lambda part: part[3].name):
            if name not in MATRICES:
                continue
            parts = list(group)
            local, _, length, _ = parts[-1]
            adamw_update(**arguments, first=done, stop=local + length)
            done = local + length
            model.group.begin()
            model.group.all_gather([(model.memory["params"][s.start : s.stop], state.bounds_within(s)) for *_, s in parts])
    adamw_update(**arguments, first=done)
    model.group.end()
