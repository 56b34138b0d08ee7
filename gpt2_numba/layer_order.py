"""The order in which the layers are called, forward and backward, as in a textbook: one call per layer, nothing fused.

    tokens -> encoder -> L blocks -> layernorm -> output layer -> loss

    block:  residual2 = residual  + attproj(attention(qkv(layernorm1(residual))))
            residual3 = residual2 + fcproj(gelu(fc(layernorm2(residual2))))

    A block is a Transformer block. residual, residual2, residual3: the residual stream, (N, C), at three points; all are kept. qkv, attproj,
    fc, fcproj: linear layers, which make queries, keys and values, and end attention; begin and end the MLP.

Forward keeps what backward will need. Backward goes through the same layers in reverse: each turns the gradient of its output into the
gradient of its input, and adds to the gradients of its parameters. Names are those of memory_plan.py; a `d` in front means the gradient.
N = B * T rows, one for each token.

The functions in `k` are the NumPy, the plain or user-defined ones (kernel_sets.py), which share one signature. The fast kernels have an
order of their own with neighbouring layers fused, fused_layer_order.py. `model` is the GPT2, which sets the gradients to zero when a step
begins.
"""

from itertools import pairwise

from gpt2_numba.gpu.arena import zero


def prepare_backward(model, acts, inputs):
    """A hook for work on the host before backward: this order needs none."""


def forward(model, acts, attend=None):
    """From acts.inputs to acts.logits. attend(l): does the attention of block l if it is not within the batch (inference.py)."""
    k, p, L = model.kernels.functions, model.params, model.config.L
    k.encoder_forward(acts.encoded, acts.inputs, p.wte, p.wpe)
    residual = acts.encoded
    for l in range(L):
        k.layernorm_forward(out=acts.ln1[l], mean=acts.ln1_mean[l], rstd=acts.ln1_rstd[l], inp=residual, weight=p.ln1w[l], bias=p.ln1b[l])
        k.matmul_forward(acts.qkv[l], acts.ln1[l], p.qkvw[l], p.qkvb[l])
        attend(l) if attend else k.attention_forward(acts.atty[l], acts.lse[l], acts.qkv[l])
        k.matmul_forward(acts.branch, acts.atty[l], p.attprojw[l], p.attprojb[l])
        k.residual_forward(acts.residual2[l], residual, acts.branch)

        k.layernorm_forward(
            out=acts.ln2[l], mean=acts.ln2_mean[l], rstd=acts.ln2_rstd[l], inp=acts.residual2[l], weight=p.ln2w[l], bias=p.ln2b[l]
        )
        k.matmul_forward(acts.fch[l], acts.ln2[l], p.fcw[l], p.fcb[l])
        k.gelu_forward(acts.fch_gelu[l], acts.fch[l])
        k.matmul_forward(acts.branch, acts.fch_gelu[l], p.fcprojw[l], p.fcprojb[l])
        k.residual_forward(acts.residual3[l], acts.residual2[l], acts.branch)
        residual = acts.residual3[l]
    k.layernorm_forward(out=acts.lnf, mean=acts.lnf_mean, rstd=acts.lnf_rstd, inp=residual, weight=p.lnfw, bias=p.lnfb)
    k.matmul_forward(acts.logits, acts.lnf, p.wte, None)


def losses(model, acts):
    """From acts.logits to the loss of each token, and their mean added to mean_loss. For validation: no gradients."""
    k = model.kernels.functions
    k.classifier_forward(acts.losses, acts.logits, acts.targets, model.config.V)
    k.accumulate_mean(model.memory["mean_loss"], acts.losses)


def backward(model, acts, dloss, last):
    """From acts.logits to the gradients of all parameters, accumulated; also the losses, as in `losses`.

    dloss  the gradient with respect to each token's loss, a number      last  this is the last batch of the step

    acts.dresidual is the gradient of the residual stream at the point that backward has reached: layernorm_backward *adds* the gradient
    that comes back through a branch to it. acts.dbranch holds the gradients on the way through a branch that are (N, C).
    """
    k, p, g, L = model.kernels.functions, model.params, model.grads, model.config.L
    recompute = model.options.recompute
    k.classifier_forward_backward(
        losses=acts.losses, logits=acts.logits, targets=acts.targets, dloss=dloss, V=model.config.V
    )  # the logits become their gradients
    k.accumulate_mean(model.memory["mean_loss"], acts.losses)
    k.matmul_backward(dinp=acts.dbranch, dweight=g.wte, dbias=None, dout=acts.logits, inp=acts.lnf, weight=p.wte)
    zero(acts.dresidual)
    saved = dict(inp=acts.residual3[-1], weight=p.lnfw, mean=acts.lnf_mean, rstd=acts.lnf_rstd)
    k.layernorm_backward(dinp=acts.dresidual, dweight=g.lnfw, dbias=g.lnfb, dout=acts.dbranch, **saved)

    for l in reversed(range(L)):
        residual = acts.residual3[l - 1] if l else acts.encoded

        # residual3 = residual2 + fcproj(gelu(fc(ln2)))
        k.residual_backward(acts.dresidual, acts.dbranch, acts.dresidual)
        if recompute >= 1:  # all blocks share one fch_gelu
            k.gelu_forward(acts.fch_gelu[l], acts.fch[l])
        k.matmul_backward(
            dinp=acts.dfch, dweight=g.fcprojw[l], dbias=g.fcprojb[l], dout=acts.dbranch, inp=acts.fch_gelu[l], weight=p.fcprojw[l]
        )
        k.gelu_backward(acts.dfch, acts.dfch, acts.fch[l])  # in place
        if recompute >= 2:  # all blocks share one ln1 and one ln2
            k.layernorm_forward(
                out=acts.ln2[l], mean=acts.ln2_mean[l], rstd=acts.ln2_rstd[l], inp=acts.residual2[l], weight=p.ln2w[l], bias=p.ln2b[l]
            )
        k.matmul_backward(dinp=acts.dbranch, dweight=g.fcw[l], dbias=g.fcb[l], dout=acts.dfch, inp=acts.ln2[l], weight=p.fcw[l])
        saved = dict(inp=acts.residual2[l], weight=p.ln2w[l], mean=acts.ln2_mean[l], rstd=acts.ln2_rstd[l])
        k.layernorm_backward(dinp=acts.dresidual, dweight=g.ln2w[l], dbias=g.ln2b[l], dout=acts.dbranch, **saved)  # dresidual += ...

        # residual2 = residual + attproj(attention(qkv(ln1)))
        k.residual_backward(acts.dresidual, acts.dbranch, acts.dresidual)
        k.matmul_backward(
            dinp=acts.datty, dweight=g.attprojw[l], dbias=g.attprojb[l], dout=acts.dbranch, inp=acts.atty[l], weight=p.attprojw[l]
        )
        k.attention_backward(dqkv=acts.dqkv, dout=acts.datty, out=acts.atty[l], lse=acts.lse[l], qkv=acts.qkv[l])
        if recompute >= 2:
            k.layernorm_forward(
                out=acts.ln1[l], mean=acts.ln1_mean[l], rstd=acts.ln1_rstd[l], inp=residual, weight=p.ln1w[l], bias=p.ln1b[l]
            )
        k.matmul_backward(dinp=acts.dbranch, dweight=g.qkvw[l], dbias=g.qkvb[l], dout=acts.dqkv, inp=acts.ln1[l], weight=p.qkvw[l])
        saved = dict(inp=residual, weight=p.ln1w[l], mean=acts.ln1_mean[l], rstd=acts.ln1_rstd[l])
        k.layernorm_backward(dinp=acts.dresidual, dweight=g.ln1w[l], dbias=g.ln1b[l], dout=acts.dbranch, **saved)  # dresidual += ...
        model.gradients.layer_done(l, last)  # several processes: the gradients of this block may be sent

    k.encoder_backward(g.wte, g.wpe, acts.dresidual, acts.inputs)
    model.gradients.all_done(last)


def sum_of_squares(model):
    """The squares of the gradients, in partial sums: with several processes, each sums its share."""
    partials, grads = model.memory["norm_partials"], model.memory["grads"]
    zero(partials)
    # A row of the table (gpu/ranges.py): where a range begins in this process's arrays, among parameters, among gradients; does it decay?
    for (start, _, in_grads, _), (stop, *_) in pairwise(model.sharing.norm_ranges().tolist()):  # the last row only marks the end
        model.kernels.functions.sum_of_squares(partials, grads[in_grads : in_grads + stop - start])


def norm_and_scale(model, max_norm):
    """From the partial sums to the norm of all gradients and the scale that clips it; not a number if norm or loss is not finite."""
    memory = model.memory
    model.kernels.functions.norm_and_scale(memory["norm_and_scale"], memory["norm_partials"], memory["mean_loss"], max_norm)


def update(model, step, learning_rate, weight_decay, beta1, beta2, eps, rounding_seed):
    """One step of AdamW on the parameters that this process updates: one call for each run of neighbouring tensors that decay alike.

    rounding_seed is for bfloat16 parameters, which only the fast kernels support.
    """
    memory, sharing = model.memory, model.sharing
    for (start, in_params, in_grads, decays), (stop, *_) in pairwise(sharing.update_ranges().tolist()):
        length = stop - start
        model.kernels.functions.adamw_update(
            params=memory["params"][in_params : in_params + length], grads=memory["grads"][in_grads : in_grads + length],
            m=memory["m"][start:stop], v=memory["v"][start:stop], norm_and_scale=memory["norm_and_scale"], learning_rate=learning_rate,
            beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay if decays else 0.0, t=step + 1,
        )  # fmt: skip
    if sharing.stage > 0:  # ZeRO (parallel/shards.py): each process has updated its parts of the matrices; now gather them everywhere
        model.group.begin()
        cut = [segment for segment in sharing.state.segments if segment.name in sharing.state.cut]
        model.group.all_gather([(memory["params"][s.start : s.stop], sharing.state.bounds_within(s)) for s in cut])
        model.group.end()
