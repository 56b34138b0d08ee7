"""GPT-2: the parameters, the activations, and the order in which the layers are called, forward and backward.

    tokens -> encoder -> L blocks -> layernorm -> classifier -> loss

    block:  x += attproj(attention(qkv(layernorm1(x))))        x is the residual stream, (N, C)
            x += fcproj(gelu(fc(layernorm2(x))))

Everything lies in one arena, allocated once. The same code runs on the host and on the GPU: the arrays decide which layer function
runs the reference and which the kernel. N = B * T; an activation is an (N, channels) array, one row a token.

Recompute levels save memory: 0 keeps everything for backward, 1 makes the GELU again, 2 the LayerNorms as well. The bits are the same, unless
the first GELU was cuBLASLt's (gelu_fusion 1 and 2): the one that is made again is ours, and may differ from it in the last bit of a bfloat16.
"""

import math
from types import SimpleNamespace

import numpy as np

from gpt2_numba.config import GPT2Config, count_parameters, parameter_shapes, parse_descriptor
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.arena import Arena, free_gpu_bytes, zero
from gpt2_numba.gpu.backend import (
    BFLOAT16_BITS,
    FLOAT32,
    bfloat16_values,
    copy_to_device,
    copy_to_host,
    gpu_available,
    on_host,
    real_gpu,
    synchronize,
)
from gpt2_numba.gpu.cublaslt import WORKSPACE_BYTES
from gpt2_numba.gpu.gemm import allow_tf32
from gpt2_numba.gpu.graph import Graphs
from gpt2_numba.gpu.moment import GpuMoment, HostMoment
from gpt2_numba.gpu.staging import PinnedResults, PinnedRing
from gpt2_numba.layers.adamw import adamw_update
from gpt2_numba.layers.attention import attention_backward, attention_forward, attention_scratch_size
from gpt2_numba.layers.classifier import accumulate_mean, classifier_forward, classifier_forward_backward
from gpt2_numba.layers.encoder import encoder_backward, encoder_forward, encoder_scratch_size, most_pieces, places_by_token
from gpt2_numba.layers.gelu import gelu_backward, gelu_forward, gelu_scratch_size
from gpt2_numba.layers.global_norm import BLOCKS as NORM_BLOCKS
from gpt2_numba.layers.global_norm import global_norm
from gpt2_numba.layers.layernorm import (
    layernorm_backward,
    layernorm_forward,
    layernorm_scratch_size,
    residual_layernorm_forward,
)
from gpt2_numba.layers.matmul import matmul_backward, matmul_forward, matmul_gelu_forward, matmul_scratch_size

__all__ = ["GPT2", "GPT2Config", "count_parameters", "parameter_shapes", "parse_descriptor", "plan_memory"]

DECAYED = ("wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw")  # the matrices; biases and LayerNorms are not decayed
STEP_RESULTS = 3  # numbers that a step sends to the host: norm of the gradients, scale that clips them, mean loss
LOAD_PIECE = 1 << 24  # numbers converted and copied at a time
STATISTICS = ("ln1_mean", "ln1_rstd", "ln2_mean", "ln2_rstd", "lse")  # activations that are float32 in any precision
ONCE = ("wte", "wpe", "lnfw", "lnfb")  # the tensors that are not one for each block


def activation_shapes(config, B, T):
    """What a block keeps for backward, name -> shape: of the model's type, STATISTICS float32."""
    N, C, NH = B * T, config.C, config.NH
    return {
        "ln1": (N, C),  # LayerNorm's output
        "ln1_mean": (N,),
        "ln1_rstd": (N,),
        "qkv": (N, 3 * C),  # queries, keys, values
        "lse": (B, NH, T),  # logarithm of the sum by which a query's attention weights are divided
        "atty": (N, C),  # attention's output
        "residual2": (N, C),  # the residual stream after attention
        "ln2": (N, C),
        "ln2_mean": (N,),
        "ln2_rstd": (N,),
        "fch": (N, 4 * C),  # before the GELU
        "fch_gelu": (N, 4 * C),  # after it
        "residual3": (N, C),  # the residual stream after the MLP
    }


def passing_shapes(config, B, T):
    """Arrays that are needed for a moment only, as three sets that share one piece of memory: no two sets are needed at a time."""
    N, C = B * T, config.C
    in_forward = {"branch": (N, C)}
    at_the_end = {"logits": (N, config.Vp)}
    in_backward = {"dfch": (N, 4 * C), "dqkv": (N, 3 * C)}
    return in_forward, at_the_end, in_backward


def decayed_ranges(config):
    """Where weight decay applies among all parameters in the table's order: (K, 2) int64, [start, stop) ascending."""
    ranges, start = [], 0
    for name, shape in parameter_shapes(config).items():
        stop = start + math.prod(shape)
        if name in DECAYED:
            if ranges and ranges[-1][1] == start:
                ranges[-1][1] = stop
            else:
                ranges.append([start, stop])
        start = stop
    return np.array(ranges, np.int64)


def _aligned(count):
    return -(-count // 128) * 128  # elements: 256 bytes of bfloat16


def plan_memory(config, B, T, precision="fp32", recompute=1, master_weights=True):
    """All arrays of a model in training, as an Arena that has not been allocated yet."""
    real = FLOAT32 if precision == "fp32" else BFLOAT16_BITS
    N, C, count = B * T, config.C, count_parameters(config)
    arena = Arena()
    arena.add("parameters", "params", (count,), real)
    arena.add("gradients", "grads", (count,), real)
    arena.add("AdamW's m and v", "m", (count,), FLOAT32)
    arena.add("AdamW's m and v", "v", (count,), FLOAT32)
    if precision == "bf16" and master_weights:
        arena.add("master weights", "master", (count,), FLOAT32)
    shared_by_blocks = {1: ("fch_gelu",), 2: ("fch_gelu", "ln1", "ln2")}.get(recompute, ())
    for name, shape in activation_shapes(config, B, T).items():
        copies = 1 if name in shared_by_blocks else config.L
        arena.add("activations", name, (copies, math.prod(shape)), FLOAT32 if name in STATISTICS else real)
    arena.add("activations", "encoded", (N * C,), real)
    arena.add("activations", "lnf", (N * C,), real)
    arena.add("activations", "lnf_mean", (N,), FLOAT32)
    arena.add("activations", "lnf_rstd", (N,), FLOAT32)
    arena.add("activations", "losses", (N,), FLOAT32)
    passing = max(sum(_aligned(math.prod(s)) for s in shapes.values()) for shapes in passing_shapes(config, B, T))
    arena.add("logits and scratch", "passing", (passing,), real)
    arena.add("logits and scratch", "dresidual", (N * C,), real)
    arena.add("logits and scratch", "dbranch", (N * C,), real)
    sums = max(layernorm_scratch_size(C), matmul_scratch_size(4 * C), gelu_scratch_size(4 * C), encoder_scratch_size(N, C), NORM_BLOCKS)
    arena.add("logits and scratch", "sums", (sums,), FLOAT32)
    arena.add("logits and scratch", "att_scratch", (attention_scratch_size(B, T, config.NH, config.HS, real),), FLOAT32)
    for name in ("inputs", "targets", "places"):
        arena.add("tokens", name, (N,), np.int32)
    arena.add("tokens", "pieces", (most_pieces(N, config.V) + 1, 3), np.int32)
    arena.add("update", "step_values", (3,), FLOAT32)
    arena.add("update", "rounding_seed", (1,), np.uint32)
    arena.add("update", "step_results", (STEP_RESULTS,), FLOAT32)
    arena.add("update", "decayed", decayed_ranges(config).shape, np.int64)
    return arena


def memory_needed(config, B, T, precision, recompute, master_weights):
    """Bytes of GPU memory that a model in training takes, cuBLASLt's workspace included."""
    return plan_memory(config, B, T, precision, recompute, master_weights).nbytes + WORKSPACE_BYTES


def largest_batch(config, T, precision, recompute, master_weights, free_bytes):
    """The largest B for which a model in training fits into `free_bytes` of GPU memory; 0 if none does."""

    def fits(B):
        return memory_needed(config, B, T, precision, recompute, master_weights) <= free_bytes

    fitting, too_large = 0, 1
    while fits(too_large):
        fitting, too_large = too_large, 2 * too_large
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        fitting, too_large = (middle, too_large) if fits(middle) else (fitting, middle)
    return fitting


def check_memory(config, B, T, precision, recompute, master_weights, free_bytes):
    """Raise UserError if a model in training does not fit into `free_bytes` of GPU memory; the message says what would fit."""

    def needed(batch, level):
        return memory_needed(config, batch, T, precision, level, master_weights)

    if needed(B, recompute) <= free_bytes:
        return
    message = (
        f"too little GPU memory: {config} with B={B}, T={T}, {precision}, recompute {recompute} needs "
        f"{needed(B, recompute) / 2**30:.2f} GiB, {free_bytes / 2**30:.2f} GiB are free. "
    )
    if recompute < 2 and needed(B, 2) <= free_bytes:
        raise UserError(message + "Recompute 2 (-r 2) would fit")
    fitting = largest_batch(config, T, precision, recompute, master_weights, free_bytes)
    if fitting:
        raise UserError(message + f"A micro-batch of {fitting} (-b {fitting}) would fit, more of them to a step keep the total")
    raise UserError(message + "Not even a micro-batch of 1 fits: take a shorter context (-t), a smaller model (-e) or bf16")


class GPT2:
    """A model in training: parameters, gradients, optimizer state and activations for batches of up to (B, T) tokens.

    config          GPT2Config        B, T  largest batch; T at most config.max_T
    device          "cpu" (NumPy references) or "gpu" (kernels; in the simulator, too)
    precision       "fp32", or "bf16" on a GPU: parameters, gradients and activations in bfloat16, sums in float32
    recompute       0, 1 or 2         master_weights  keep float32 copies of bfloat16 parameters
    tf32            allow TF32 in float32 matmuls on a GPU; it holds for the whole process
    graph           record the launches of a pass as a CUDA graph and replay it, on a real GPU; the bits are the same without
    gelu_fusion     0, 1: GELU in the epilogue of the matmul before it, 2: its backward, too. On a real GPU; elsewhere it changes nothing
    Raises UserError where these do not go together or the memory is too small. Parameters are zero until loaded.
    """

    def __init__(self, config, B, T, device="cpu", precision="fp32", recompute=1, master_weights=True, tf32=True, gelu_fusion=0, graph=True):
        if T > config.max_T:
            raise UserError(f"the sequence length T={T} must be at most the model's longest context, {config.max_T}: use -t {config.max_T}")
        if device not in ("cpu", "gpu") or precision not in ("fp32", "bf16") or recompute not in (0, 1, 2):
            raise UserError(f"device is cpu or gpu, precision fp32 or bf16, recompute 0, 1 or 2; got {device}, {precision}, {recompute}")
        if device == "cpu" and precision == "bf16":
            raise UserError("bf16 needs a GPU: NumPy has no bfloat16. Use --precision fp32")
        if device == "gpu":
            if not gpu_available():
                raise UserError(
                    "a GPU was asked for and there is none that works. Use --device cpu, or set NUMBA_ENABLE_CUDASIM=1 to run "
                    "the kernels in Numba's simulator (slow)"
                )
            allow_tf32(tf32)  # before memory is planned: attention's scratch depends on it
            check_memory(config, B, T, precision, recompute, master_weights, free_gpu_bytes())
        self.config, self.B, self.T = config, B, T
        self.device, self.precision, self.recompute = device, precision, recompute
        self.gelu_fusion = gelu_fusion if device == "gpu" and real_gpu() else 0
        self.arena = plan_memory(config, B, T, precision, recompute, master_weights)
        self._memory = self.arena.allocate(on_gpu=device == "gpu")
        results = self._memory["step_results"]  # in one piece, so that one copy brings all of them to the host
        self._memory["norm_and_scale"], self._memory["mean_loss"] = results[:2], results[2:]
        for name in ("params", "grads", "m", "v", "mean_loss"):
            zero(self._memory[name])
        self._write(self._memory["norm_and_scale"], np.ones(2, np.float32))
        self._write(self._memory["decayed"], decayed_ranges(config))
        self._offsets = np.cumsum([0] + [math.prod(shape) for shape in parameter_shapes(config).values()]).tolist()
        self.params = self._parameter_views(self._memory["params"])
        self.grads = self._parameter_views(self._memory["grads"])
        on_real_gpu = device == "gpu" and real_gpu()
        self._staging = PinnedRing(3 * most_pieces(B * T, config.V) + 3) if on_real_gpu else None
        self._results = PinnedResults(STEP_RESULTS) if on_real_gpu else None
        self._graphs = Graphs(graph and on_real_gpu)
        self._views = {}
        self._losses_gathered = 0
        self._batch = None

    # ------------------------------------------------------------------------------------------------ parameters

    def _parameter_views(self, flat):
        """Attributes by tensor name: an array, or a list of L arrays for the tensors that each block has."""
        views = SimpleNamespace()
        for (name, shape), start, stop in zip(parameter_shapes(self.config).items(), self._offsets, self._offsets[1:]):
            tensor = flat[start:stop].reshape(shape)
            setattr(views, name, tensor if name in ONCE else [tensor[layer] for layer in range(self.config.L)])
        return views

    def load_pieces(self, pieces):
        """Set parameters from (name, layer, float array) triples, one for each tensor of each block. Optimizer state starts anew."""
        copies = [self.params] + ([self._parameter_views(self._memory["master"])] if "master" in self._memory else [])
        for name, layer, values in pieces:
            for views in copies:
                target = getattr(views, name)
                target = target[layer] if isinstance(target, list) else target
                if tuple(values.shape) != tuple(target.shape):
                    raise ValueError(f"load_pieces: {name} must be {tuple(target.shape)} for each layer, got {tuple(values.shape)}")
                self._write(target, values)
        zero(self._memory["m"])
        zero(self._memory["v"])

    def load_params(self, tensors):
        """Set all parameters from name -> float array of the table's shape. Optimizer state starts anew."""
        shapes = parameter_shapes(self.config)
        if set(tensors) != set(shapes):
            raise ValueError(f"load_params: the tensors must be {sorted(shapes)}, got {sorted(tensors)}")
        for name, shape in shapes.items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"load_params: {name} must be {shape}, got {tuple(tensors[name].shape)}")
        self.load_pieces(
            (name, layer, tensors[name] if name in ONCE else tensors[name][layer])
            for name in shapes
            for layer in range(1 if name in ONCE else self.config.L)
        )

    def raw(self, which):
        """One of the flat arrays "params", "grads", "m", "v", "master" as it lies in memory, all tensors in the table's order; or None."""
        return self._memory.get(which)

    def load_raw(self, which, values):
        """Overwrite a flat array (see `raw`) with a host array of the same length, converting between float32 and bfloat16 bits.

        In pieces, since `values` may be a memory map of gigabytes. Raises ValueError where the length differs.
        """
        target = self._memory[which]
        if values.shape != target.shape:
            raise ValueError(f"load_raw: {which} has {target.shape} numbers, got {values.shape}")
        for start in range(0, len(values), LOAD_PIECE):
            piece = np.asarray(values[start : start + LOAD_PIECE])
            if piece.dtype == BFLOAT16_BITS and target.dtype == FLOAT32:
                piece = bfloat16_values(piece)
            self._write(target[start : start + LOAD_PIECE], piece)

    def params_to_host(self):
        """All parameters, name -> float32 array of the table's shape (a copy)."""
        return self._to_host("params")

    def grads_to_host(self):
        """All gradients, name -> float32 array of the table's shape (a copy)."""
        return self._to_host("grads")

    def _to_host(self, which):
        flat = self._read(self._memory[which])
        pieces = zip(parameter_shapes(self.config).items(), self._offsets, self._offsets[1:])
        return {name: flat[start:stop].reshape(shape) for (name, shape), start, stop in pieces}

    @staticmethod
    def _read(array):
        return array.copy() if on_host(array) else copy_to_host(array)

    @staticmethod
    def _write(array, values):
        if on_host(array):
            array[:] = values
        else:
            copy_to_device(array, values)

    # ------------------------------------------------------------------------------------------------ activations

    def _activations(self, B, T):
        """Views of the activations for a batch of (B, T) tokens, which uses the front of each buffer. Made once for each size."""
        if (B, T) not in self._views:
            self._views[B, T] = self._make_views(B, T)
        return self._views[B, T]

    def _make_views(self, B, T):
        acts = SimpleNamespace()
        memory, N, C = self._memory, B * T, self.config.C
        for name, shape in activation_shapes(self.config, B, T).items():
            buffer, size = memory[name], math.prod(shape)
            copies = [buffer[layer][:size].reshape(shape) for layer in range(buffer.shape[0])]
            setattr(acts, name, [copies[layer % len(copies)] for layer in range(self.config.L)])
        for name in ("encoded", "lnf", "dresidual", "dbranch"):
            setattr(acts, name, memory[name][: N * C].reshape((N, C)))
        for name in ("lnf_mean", "lnf_rstd", "losses", "targets", "places"):
            setattr(acts, name, memory[name][:N])
        acts.inputs = memory["inputs"][:N].reshape((B, T))
        acts.pieces = memory["pieces"][: most_pieces(N, self.config.V) + 1]
        for shapes in passing_shapes(self.config, B, T):
            start = 0
            for name, shape in shapes.items():
                setattr(acts, name, memory["passing"][start : start + math.prod(shape)].reshape(shape))
                start += _aligned(math.prod(shape))
        return acts

    def _load_tokens(self, name, target, tokens):
        tokens = np.ascontiguousarray(tokens, np.int32)
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.V:
            raise UserError(f"{name} must be tokens from 0 to V - 1 = {self.config.V - 1}, got {low if low < 0 else high}: is the data another vocabulary's?")
        self._write_numbers(target, tokens)
        return tokens

    def _write_numbers(self, target, values):
        """Copy numbers of four bytes to the device without waiting for what it is doing."""
        if self._staging is None:
            self._write(target, values.reshape(target.shape))
        else:
            self._staging.copy(target, values)

    # ----------------------------------------------------------------------------------------------- forward pass

    def forward(self, inputs):
        """Compute the logits of a batch. inputs: (b, t) int32 host array, b at most B, t at most T."""
        b, t = inputs.shape
        if b > self.B or t > self.T:
            raise ValueError(f"forward: inputs must be at most (B, T) = ({self.B}, {self.T}), got {inputs.shape}")
        acts = self._activations(b, t)
        self._batch = (acts, self._load_tokens("inputs", acts.inputs, inputs))
        self._graphs.run(("forward", b, t), lambda: self._forward(acts))

    def _forward(self, acts):
        p = self.params
        encoder_forward(acts.encoded, acts.inputs, p.wte, p.wpe)
        residual = acts.encoded
        layernorm_forward(acts.ln1[0], acts.ln1_mean[0], acts.ln1_rstd[0], residual, p.ln1w[0], p.ln1b[0])
        for l in range(self.config.L):
            matmul_forward(acts.qkv[l], acts.ln1[l], p.qkvw[l], p.qkvb[l])
            attention_forward(acts.atty[l], acts.lse[l], acts.qkv[l], self._memory["att_scratch"])
            matmul_forward(acts.branch, acts.atty[l], p.attprojw[l], p.attprojb[l])
            ln2 = acts.ln2[l], acts.ln2_mean[l], acts.ln2_rstd[l]
            residual_layernorm_forward(acts.residual2[l], *ln2, residual, acts.branch, p.ln2w[l], p.ln2b[l])

            if self.gelu_fusion >= 1:
                matmul_gelu_forward(acts.fch_gelu[l], acts.fch[l], acts.ln2[l], p.fcw[l], p.fcb[l])
            else:
                matmul_forward(acts.fch[l], acts.ln2[l], p.fcw[l], p.fcb[l])
                gelu_forward(acts.fch_gelu[l], acts.fch[l])
            matmul_forward(acts.branch, acts.fch_gelu[l], p.fcprojw[l], p.fcprojb[l])
            if l + 1 < self.config.L:
                after = acts.ln1[l + 1], acts.ln1_mean[l + 1], acts.ln1_rstd[l + 1]
                weight, bias = p.ln1w[l + 1], p.ln1b[l + 1]
            else:
                after, weight, bias = (acts.lnf, acts.lnf_mean, acts.lnf_rstd), p.lnfw, p.lnfb
            residual_layernorm_forward(acts.residual3[l], *after, acts.residual2[l], acts.branch, weight, bias)
            residual = acts.residual3[l]
        matmul_forward(acts.logits, acts.lnf, p.wte, None)

    def evaluate(self, inputs, targets):
        """Forward pass, and the mean loss against `targets` (b, t), to be had from take_loss. No gradients."""
        self.forward(inputs)
        acts, _ = self._batch
        self._load_tokens("targets", acts.targets, targets)
        classifier_forward(acts.losses, acts.logits, acts.targets, self.config.V)
        accumulate_mean(self._memory["mean_loss"], acts.losses)
        self._losses_gathered += 1

    def take_loss(self):
        """Mean loss (nats per token) of the batches since the last call, as a float. Waits for the device."""
        if not self._losses_gathered:
            raise RuntimeError("take_loss: no loss has been computed since the last call")
        loss = float(self._read(self._memory["mean_loss"])[0]) / self._losses_gathered
        zero(self._memory["mean_loss"])
        self._losses_gathered = 0
        return loss

    def losses_to_host(self):
        """Loss of each token of the last `evaluate`, (b, t) float32, nats."""
        acts, inputs = self._batch
        return self._read(acts.losses).reshape(inputs.shape)

    def logits_to_host(self):
        """Logits of the last forward pass, (b, t, V) float32."""
        acts, inputs = self._batch
        return self._read(acts.logits).reshape(*inputs.shape, self.config.Vp)[..., : self.config.V]

    def last_logits(self, position):
        """Logits at one position of the first row of the last forward pass, (V,) float32."""
        acts, _ = self._batch
        return self._read(acts.logits[position])[: self.config.V]

    # ---------------------------------------------------------------------------------------------- backward pass

    def zero_grad(self):
        """Set all gradients to zero."""
        zero(self._memory["grads"])

    def backward(self, targets, grad_accum_steps=1):
        """Loss of the last forward pass against `targets` (b, t), and its gradients, divided by grad_accum_steps and accumulated."""
        if self._batch is None:
            raise RuntimeError("backward: call forward first; each forward pass serves one backward pass")
        (acts, inputs), self._batch = self._batch, None  # the logits are about to become gradients
        self._load_tokens("targets", acts.targets, targets)
        places, pieces = places_by_token(inputs, self.config.V)
        self._write_numbers(acts.places, places)
        self._write_numbers(acts.pieces, pieces)
        self._graphs.run(("backward", inputs.shape, grad_accum_steps), lambda: self._backward(acts, grad_accum_steps))
        self._losses_gathered += 1

    def _backward(self, acts, grad_accum_steps):
        p, g, sums, dresidual = self.params, self.grads, self._memory["sums"], acts.dresidual
        dloss = 1 / (acts.inputs.size * grad_accum_steps)
        classifier_forward_backward(acts.losses, acts.logits, acts.targets, dloss, self.config.V)
        accumulate_mean(self._memory["mean_loss"], acts.losses)
        matmul_backward(acts.dbranch, g.wte, None, acts.logits, acts.lnf, p.wte, None)
        zero(dresidual)
        # Who makes the dout of a linear layer makes the gradient of its bias in passing: the LayerNorms those of attproj and fcproj, whose
        # dout is dresidual, and the GELU that of fc.
        lnf = acts.residual3[-1], p.lnfw, acts.lnf_mean, acts.lnf_rstd
        layernorm_backward(dresidual, g.lnfw, g.lnfb, acts.dbranch, *lnf, sums, g.fcprojb[-1])

        for l in reversed(range(self.config.L)):
            residual = acts.residual3[l - 1] if l else acts.encoded
            if self.recompute >= 1:
                gelu_forward(acts.fch_gelu[l], acts.fch[l])
            fused = acts.fch[l] if self.gelu_fusion >= 2 else None
            matmul_backward(acts.dfch, g.fcprojw[l], None, dresidual, acts.fch_gelu[l], p.fcprojw[l], sums, before_gelu=fused)
            if fused is None:
                gelu_backward(acts.dfch, acts.dfch, acts.fch[l], g.fcb[l], sums)
            if self.recompute >= 2:
                layernorm_forward(acts.ln2[l], acts.ln2_mean[l], acts.ln2_rstd[l], acts.residual2[l], p.ln2w[l], p.ln2b[l])
            dfcb = None if fused is None else g.fcb[l]
            matmul_backward(acts.dbranch, g.fcw[l], dfcb, acts.dfch, acts.ln2[l], p.fcw[l], sums)
            ln2 = acts.residual2[l], p.ln2w[l], acts.ln2_mean[l], acts.ln2_rstd[l]
            layernorm_backward(dresidual, g.ln2w[l], g.ln2b[l], acts.dbranch, *ln2, sums, g.attprojb[l])

            matmul_backward(acts.dbranch, g.attprojw[l], None, dresidual, acts.atty[l], p.attprojw[l], sums)
            attention_backward(acts.dqkv, acts.dbranch, acts.atty[l], acts.lse[l], acts.qkv[l], self._memory["att_scratch"])
            if self.recompute >= 2:
                layernorm_forward(acts.ln1[l], acts.ln1_mean[l], acts.ln1_rstd[l], residual, p.ln1w[l], p.ln1b[l])
            matmul_backward(acts.dbranch, g.qkvw[l], g.qkvb[l], acts.dqkv, acts.ln1[l], p.qkvw[l], sums)
            ln1 = residual, p.ln1w[l], acts.ln1_mean[l], acts.ln1_rstd[l]
            layernorm_backward(dresidual, g.ln1w[l], g.ln1b[l], acts.dbranch, *ln1, sums, g.fcprojb[l - 1] if l else None)

        encoder_backward(g.wte, g.wpe, dresidual, acts.places, acts.pieces, sums, acts.inputs.shape[1])

    def moment(self):
        """The moment at which the device has done all that was asked of it so far: see gpu/moment.py. Waits for nothing."""
        return HostMoment() if self._results is None else GpuMoment()

    def synchronize(self):
        """Wait until the device has done all that was asked of it."""
        if self.device == "gpu":
            synchronize()

    # ------------------------------------------------------------------------------------------------------ update

    def measure(self, max_norm=math.inf):
        """Ask for the loss of the batches since the last call (see take_loss) and the norm of all gradients together.

        Returns a function that waits for the device and gives both, as floats; it must be called before measure is called twice more.
        If the norm is larger than max_norm, the updates until the next call scale the gradients so that it is max_norm.
        """
        if not self._losses_gathered:
            raise RuntimeError("measure: no loss has been computed since the last call")
        memory, batches, self._losses_gathered = self._memory, self._losses_gathered, 0
        norm = memory["norm_and_scale"], memory["grads"], memory["sums"]
        self._graphs.run(("norm", max_norm), lambda: global_norm(*norm, max_norm))
        results = memory["step_results"]
        wait = self._read(results).tolist if self._results is None else self._results.fetch(results)
        zero(memory["mean_loss"])

        def loss_and_norm():
            norm, _, mean_loss = wait()
            return mean_loss / batches, norm

        return loss_and_norm

    def update(self, step, learning_rate, weight_decay=0.0, beta1=0.9, beta2=0.95, eps=1e-8, rounding_seed=0):
        """One step of AdamW on all parameters, their gradients scaled as the last call of `measure` has found necessary.

        step counts from 0; rounding_seed, below 2**32, chooses the noise of stochastic rounding and should differ from step to step.
        """
        memory, t = self._memory, step + 1
        self._write_numbers(memory["step_values"], np.array([learning_rate, 1 - beta1**t, 1 - beta2**t], np.float32))
        self._write_numbers(memory["rounding_seed"], np.array([rounding_seed], np.uint32))
        arrays = "params", "grads", "m", "v", "master", "step_values", "rounding_seed", "norm_and_scale", "decayed"
        constants = beta1, beta2, eps, weight_decay
        self._graphs.run(("update", *constants), lambda: adamw_update(*map(memory.get, arrays), *constants))
