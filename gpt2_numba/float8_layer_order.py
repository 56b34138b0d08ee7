"""The order in which the kernels are called with factors of eight bits: that of fused_layer_order.py (read that first), where

    the blocks' linear layers are those of layers/fast/float8.py; the output layer stays in 16 bits
    largest             the kernel that makes a factor leaves its largest |x|, from which the factor's scale follows
    fcproj              takes the GELU of fch on the way to eight bits, so that no array holds it
    LayerNorms' outputs are not kept for backward, since their eight-bit copies are

Weights are rounded when they have changed (`refresh_weights`). A batch whose number of rows is not a multiple of 16, as in evaluation, takes
the 16-bit order. `model` is the GPT2.
"""

from gpt2_numba import fused_layer_order
from gpt2_numba.float8_memory import LINEAR_LAYERS, ROUNDED_AGAIN, factor_views
from gpt2_numba.fused_layer_order import losses, norm_and_scale, prepare_backward, sum_of_squares, update
from gpt2_numba.gpu.arena import zero
from gpt2_numba.gpu.quantize import MULTIPLE
from gpt2_numba.layers.fast.attention import attention_backward, attention_forward
from gpt2_numba.layers.fast.classifier import accumulate_mean, classifier_forward_backward
from gpt2_numba.layers.fast.encoder import encoder_backward, encoder_forward
from gpt2_numba.layers.fast.float8 import DOUT, INP, WEIGHT, matmul_backward, matmul_forward, round_inp_again, round_weight
from gpt2_numba.layers.fast.gelu import gelu_backward
from gpt2_numba.layers.fast.layernorm import layernorm_backward, layernorm_forward, residual_layernorm_forward
from gpt2_numba.layers.fast.matmul import matmul_backward as matmul16_backward
from gpt2_numba.layers.fast.matmul import matmul_forward as matmul16_forward

__all__ = [
    "backward", "forward", "losses", "norm_and_scale", "prepare_backward", "refresh_weights", "sum_of_squares", "update",
]  # fmt: skip


def refresh_weights(model):
    """Round the weights of all blocks, if this model multiplies in eight bits and they have changed since the last time."""
    if model.options.float8 and model.weights_changed:
        model.graphs.run(("weights",), lambda: _round_weights(model))
        model.weights_changed = False


def _round_weights(model):
    zero(model.memory["largest"][WEIGHT])
    factors = factor_views(model.memory, model.config, MULTIPLE)
    for l in range(model.config.L):
        for name in LINEAR_LAYERS:
            round_weight(getattr(model.params, f"{name}w")[l], getattr(factors, name)[l])


def factors_of(model, acts):
    """The Factors for a batch, made once for each of its sizes."""
    if not hasattr(acts, "factors"):
        acts.factors = factor_views(model.memory, model.config, acts.encoded.shape[0])
    return acts.factors


def forward(model, acts):
    """From acts.inputs to acts.logits."""
    if acts.encoded.shape[0] % MULTIPLE:
        return fused_layer_order.forward(model, acts)
    p, L, f = model.params, model.config.L, factors_of(model, acts)
    keeps = {name: name not in ROUNDED_AGAIN[model.options.recompute] for name in LINEAR_LAYERS}
    zero(model.memory["largest"][INP])
    encoder_forward(acts.encoded, acts.inputs, p.wte, p.wpe)
    residual = acts.encoded
    ln1 = dict(out=acts.ln1[0], mean=acts.ln1_mean[0], rstd=acts.ln1_rstd[0], weight=p.ln1w[0], bias=p.ln1b[0])
    layernorm_forward(inp=residual, **ln1, largest=f.qkv[0].largest[INP])
    for l in range(L):
        matmul_forward(acts.qkv[l], acts.ln1[l], p.qkvw[l], p.qkvb[l], f.qkv[l], has_largest=True, keep=keeps["qkv"])
        attention_forward(acts.atty[l], acts.lse[l], acts.qkv[l], model.memory["att_scratch"])
        matmul_forward(acts.branch, acts.atty[l], p.attprojw[l], p.attprojb[l], f.attproj[l])
        ln2 = dict(out=acts.ln2[l], mean=acts.ln2_mean[l], rstd=acts.ln2_rstd[l], weight=p.ln2w[l], bias=p.ln2b[l])
        ln2["largest"] = f.fc[l].largest[INP]
        residual_layernorm_forward(residual=acts.residual2[l], inp=residual, branch=acts.branch, **ln2)

        matmul_forward(acts.fch[l], acts.ln2[l], p.fcw[l], p.fcb[l], f.fc[l], has_largest=True, keep=keeps["fc"])
        matmul_forward(acts.branch, acts.fch[l], p.fcprojw[l], p.fcprojb[l], f.fcproj[l], gelu=True, keep=keeps["fcproj"])
        if l + 1 < L:
            n = l + 1
            layernorm = dict(out=acts.ln1[n], mean=acts.ln1_mean[n], rstd=acts.ln1_rstd[n], weight=p.ln1w[n], bias=p.ln1b[n])
            layernorm["largest"] = f.qkv[n].largest[INP]
        else:
            layernorm = dict(out=acts.lnf, mean=acts.lnf_mean, rstd=acts.lnf_rstd, weight=p.lnfw, bias=p.lnfb)
        residual_layernorm_forward(residual=acts.residual3[l], inp=acts.residual2[l], branch=acts.branch, **layernorm)
        residual = acts.residual3[l]
    matmul16_forward(acts.logits, acts.lnf, p.wte, None)


def backward(model, acts, dloss, last):
    """From acts.logits to the gradients of all parameters. dloss: with respect to each token's loss. last: the last batch of the step.

    Raises ValueError if the number of rows is not a multiple of 16.
    """
    if acts.encoded.shape[0] % MULTIPLE:
        raise ValueError(
            f"backward: with factors of eight bits a batch must have a multiple of {MULTIPLE} tokens, got {acts.encoded.shape[0]}"
        )
    p, g, sums, dresidual, f = model.params, model.grads, model.memory["sums"], acts.dresidual, factors_of(model, acts)
    recompute = model.options.recompute
    zero(model.memory["largest"][DOUT])
    classifier_forward_backward(losses=acts.losses, logits=acts.logits, targets=acts.targets, dloss=dloss, V=model.config.V)
    accumulate_mean(model.memory["mean_loss"], acts.losses)
    matmul16_backward(dinp=acts.dbranch, dweight=g.wte, dbias=None, dout=acts.logits, inp=acts.lnf, weight=p.wte, scratch=None)
    zero(dresidual)
    lnf = dict(dweight=g.lnfw, dbias=g.lnfb, inp=acts.residual3[-1], weight=p.lnfw, mean=acts.lnf_mean, rstd=acts.lnf_rstd)
    below = dict(dinp_sums=g.fcprojb[-1], largest=f.fcproj[-1].largest[DOUT])
    layernorm_backward(dinp=dresidual, dout=acts.dbranch, **lnf, scratch=sums, **below)

    for l in reversed(range(model.config.L)):
        residual = acts.residual3[l - 1] if l else acts.encoded

        # residual3 = residual2 + fcproj(gelu(fc(ln2)))
        if recompute >= 1:
            round_inp_again(acts.fch[l], f.fcproj[l], gelu=True)
        matmul_backward(acts.dfch, g.fcprojw[l], dresidual, f.fcproj[l], has_largest=True)
        below = dict(dbias=g.fcb[l], largest=f.fc[l].largest[DOUT])
        gelu_backward(dinp=acts.dfch, dout=acts.dfch, inp=acts.fch[l], scratch=sums, **below)
        if recompute >= 2:
            ln2 = dict(out=acts.ln2[l], mean=acts.ln2_mean[l], rstd=acts.ln2_rstd[l])
            layernorm_forward(**ln2, inp=acts.residual2[l], weight=p.ln2w[l], bias=p.ln2b[l])
            round_inp_again(acts.ln2[l], f.fc[l])
        matmul_backward(acts.dbranch, g.fcw[l], acts.dfch, f.fc[l], has_largest=True)
        ln2 = dict(
            dweight=g.ln2w[l], dbias=g.ln2b[l], inp=acts.residual2[l], weight=p.ln2w[l], mean=acts.ln2_mean[l], rstd=acts.ln2_rstd[l]
        )
        below = dict(dinp_sums=g.attprojb[l], largest=f.attproj[l].largest[DOUT])
        layernorm_backward(dinp=dresidual, dout=acts.dbranch, **ln2, scratch=sums, **below)

        # residual2 = residual + attproj(attention(qkv(ln1)))
        matmul_backward(acts.dbranch, g.attprojw[l], dresidual, f.attproj[l], has_largest=True)
        attention = dict(out=acts.atty[l], lse=acts.lse[l], qkv=acts.qkv[l], scratch=model.memory["att_scratch"])
        attention_backward(dqkv=acts.dqkv, dbias=g.qkvb[l], dout=acts.dbranch, **attention)
        if recompute >= 2:
            ln1 = dict(out=acts.ln1[l], mean=acts.ln1_mean[l], rstd=acts.ln1_rstd[l])
            layernorm_forward(**ln1, inp=residual, weight=p.ln1w[l], bias=p.ln1b[l])
            round_inp_again(acts.ln1[l], f.qkv[l])
        matmul_backward(acts.dbranch, g.qkvw[l], acts.dqkv, f.qkv[l])
        ln1 = dict(dweight=g.ln1w[l], dbias=g.ln1b[l], inp=residual, weight=p.ln1w[l], mean=acts.ln1_mean[l], rstd=acts.ln1_rstd[l])
        below = dict(dinp_sums=g.fcprojb[l - 1], largest=f.fcproj[l - 1].largest[DOUT]) if l else {}
        layernorm_backward(dinp=dresidual, dout=acts.dbranch, **ln1, scratch=sums, **below)
        model.gradients.layer_done(l, last)

    encoder = dict(places=acts.places, pieces=acts.pieces, scratch=sums, T=acts.inputs.shape[1])
    encoder_backward(g.wte, g.wpe, dresidual, **encoder)
    model.gradients.all_done(last)
