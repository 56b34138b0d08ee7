"""GPT-2: the parameters, the activations, and the order in which the layers are called, forward and backward.

    tokens -> encoder -> L blocks -> layernorm -> classifier -> loss

    block:  x += attproj(attention(qkv(layernorm1(x))))        x is the residual stream, (N, C)
            x += fcproj(gelu(fc(layernorm2(x))))

Everything lies in one arena, allocated once. The same code runs on the host and on the GPU: the arrays decide which layer function
runs the reference and which the kernel. N = B * T; an activation is an (N, channels) array, one row a token.

Recompute levels save memory: 0 keeps everything for backward, 1 makes the GELU again, 2 the LayerNorms as well. The bits are the same, unless
the first GELU was cuBLASLt's (gelu_fusion 1 and 2): the one that is made again is ours, and may differ from it in the last bit of a bfloat16.

Several processes may train one model, each on its part of the batch (parallel/gradients.py). With ZeRO each of them updates its own parts of
the parameters, and has AdamW's averages and the master weights of these only (parallel/shards.py).
"""

import itertools
import math
from types import SimpleNamespace

import numpy as np

from gpt2_numba.config import MATRICES, ONCE, GPT2Config, count_parameters, parameter_shapes, parse_descriptor
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.arena import Arena, free_gpu_bytes, zero
from gpt2_numba.gpu.backend import (
    BFLOAT16_BITS,
    FLOAT32,
    bfloat16_values,
    copy_to_device,
    copy_to_host,
    on_host,
    real_gpu,
    require_gpu,
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
from gpt2_numba.layers.global_norm import norm_and_scale, sum_of_squares
from gpt2_numba.layers.layernorm import (
    layernorm_backward,
    layernorm_forward,
    layernorm_scratch_size,
    residual_layernorm_forward,
)
from gpt2_numba.layers.matmul import matmul_backward, matmul_forward, matmul_gelu_forward, matmul_scratch_size
from gpt2_numba.parallel.gradients import BUFFERS, Gradients, ShardedGradients, tensors_by_name
from gpt2_numba.parallel.group import Alone
from gpt2_numba.parallel.shards import Sharing

__all__ = ["GPT2", "GPT2Config", "count_parameters", "parameter_shapes", "parse_descriptor", "plan_memory"]

STEP_RESULTS = 4  # numbers that a step sends to the host: norm of the gradients, scale that clips them, mean loss, requests to stop
LOAD_PIECE = 1 << 24  # numbers converted and copied at a time
STATISTICS = ("ln1_mean", "ln1_rstd", "ln2_mean", "ln2_rstd", "lse")  # activations that are float32 in any precision


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


def _aligned(count):
    return -(-count // 128) * 128  # elements: 256 bytes of bfloat16


def plan_memory(config, B, T, precision="fp32", recompute=1, master_weights=True, sharing=None):
    """All arrays of a model in training, as an Arena that has not been allocated yet. sharing: a Sharing, by default nothing is shared out."""
    real = FLOAT32 if precision == "fp32" else BFLOAT16_BITS
    sharing = sharing or Sharing(config)
    N, C, count, own = B * T, config.C, count_parameters(config), sharing.state.local_count()
    arena = Arena()
    arena.add("parameters", "params", (count,), real)
    arena.add("gradients", "grads", (sharing.grads.local_count(),), real)
    if sharing.stage == 2:
        arena.add("gradients", "layer_grads", (BUFFERS, sum(segment.length for segment in sharing.layer_matrices(0))), real)
    arena.add("AdamW's m and v", "m", (own,), FLOAT32)
    arena.add("AdamW's m and v", "v", (own,), FLOAT32)
    if precision == "bf16" and master_weights:
        arena.add("master weights", "master", (own,), FLOAT32)
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
    sums = max(layernorm_scratch_size(C), matmul_scratch_size(4 * C), gelu_scratch_size(4 * C), encoder_scratch_size(N, C))
    arena.add("logits and scratch", "sums", (sums,), FLOAT32)
    arena.add("logits and scratch", "att_scratch", (attention_scratch_size(B, T, config.NH, config.HS, real),), FLOAT32)
    for name in ("inputs", "targets", "places"):
        arena.add("tokens", name, (N,), np.int32)
    arena.add("tokens", "pieces", (most_pieces(N, config.V) + 1, 3), np.int32)
    arena.add("update", "step_values", (3,), FLOAT32)
    arena.add("update", "rounding_seed", (1,), np.uint32)
    arena.add("update", "step_results", (STEP_RESULTS,), FLOAT32)
    arena.add("update", "norm_partials", (NORM_BLOCKS,), FLOAT32)
    arena.add("update", "ranges", sharing.update_ranges().shape, np.int64)
    arena.add("update", "norm_ranges", sharing.norm_ranges().shape, np.int64)
    return arena


def memory_needed(config, B, T, precision, recompute, master_weights, sharing=None):
    """Bytes of GPU memory that a model in training takes, cuBLASLt's workspace included."""
    return plan_memory(config, B, T, precision, recompute, master_weights, sharing).nbytes + WORKSPACE_BYTES


def largest_batch(config, T, precision, recompute, master_weights, free_bytes, sharing=None):
    """The largest B for which a model in training fits into `free_bytes` of GPU memory; 0 if none does."""

    def fits(B):
        return memory_needed(config, B, T, precision, recompute, master_weights, sharing) <= free_bytes

    fitting, too_large = 0, 1
    while fits(too_large):
        fitting, too_large = too_large, 2 * too_large
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        fitting, too_large = (middle, too_large) if fits(middle) else (fitting, middle)
    return fitting


def check_memory(config, B, T, precision, recompute, master_weights, free_bytes, sharing=None):
    """Raise UserError if a model in training does not fit into `free_bytes` of GPU memory; the message says what would fit."""

    def needed(batch, level):
        return memory_needed(config, batch, T, precision, level, master_weights, sharing)

    if needed(B, recompute) <= free_bytes:
        return
    message = (
        f"too little GPU memory: {config} with B={B}, T={T}, {precision}, recompute {recompute} needs "
        f"{needed(B, recompute) / 2**30:.2f} GiB, {free_bytes / 2**30:.2f} GiB are free. "
    )
    if recompute < 2 and needed(B, 2) <= free_bytes:
        raise UserError(message + "Recompute 2 (-r 2) would fit")
    fitting = largest_batch(config, T, precision, recompute, master_weights, free_bytes, sharing)
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
    group           the processes that train this model together (parallel/group.py); None: this one alone
    zero_stage      what they share out: 0 nothing, 1 the optimizer's state, 2 the gradients as well
    Raises UserError where these do not go together or the memory is too small. Parameters are zero until loaded.
    """

    def __init__(
        self, config, B, T, device="cpu", precision="fp32", recompute=1, master_weights=True, tf32=True, gelu_fusion=0, graph=True,
        group=None, zero_stage=0,
    ):  # fmt: skip
        if T > config.max_T:
            raise UserError(f"the sequence length T={T} must be at most the model's longest context, {config.max_T}: use -t {config.max_T}")
        if device not in ("cpu", "gpu") or precision not in ("fp32", "bf16") or recompute not in (0, 1, 2):
            raise UserError(f"device is cpu or gpu, precision fp32 or bf16, recompute 0, 1 or 2; got {device}, {precision}, {recompute}")
        if device == "cpu" and precision == "bf16":
            raise UserError("bf16 needs a GPU: NumPy has no bfloat16. Use --precision fp32")
        self.group = group or Alone()
        self.sharing = Sharing(config, self.group.rank, self.group.ranks, zero_stage)
        if device == "gpu":
            require_gpu()
            allow_tf32(tf32)  # before memory is planned: attention's scratch depends on it
            check_memory(config, B, T, precision, recompute, master_weights, free_gpu_bytes(), self.sharing)
        self.config, self.B, self.T = config, B, T
        self.device, self.precision, self.recompute = device, precision, recompute
        self.gelu_fusion = gelu_fusion if device == "gpu" and real_gpu() else 0
        self.arena = plan_memory(config, B, T, precision, recompute, master_weights, self.sharing)
        self._memory = self.arena.allocate(on_gpu=device == "gpu")
        results = self._memory["step_results"]  # in one piece, so that one copy brings all of them to the host
        self._memory["norm_and_scale"], self._memory["mean_loss"], self._memory["stop_requests"] = results[:2], results[2:3], results[3:]
        self._memory["shared_results"] = results[2:]  # what is summed over the processes
        for name in ("params", "grads", "layer_grads", "m", "v", "shared_results"):
            if name in self._memory:
                zero(self._memory[name])
        self._write(self._memory["norm_and_scale"], np.ones(2, np.float32))
        self._write(self._memory["ranges"], self.sharing.update_ranges())
        self._write(self._memory["norm_ranges"], self.sharing.norm_ranges())
        self.params = tensors_by_name(self.sharing.state, lambda segment: self._memory["params"][segment.start : segment.stop])
        self._gradients = (ShardedGradients if self.sharing.stage == 2 else Gradients)(self._memory, self.sharing, self.group)
        self.grads = self._gradients.by_name
        on_real_gpu = device == "gpu" and real_gpu()
        self._staging = PinnedRing(max(B * T, 3 * most_pieces(B * T, config.V) + 3)) if on_real_gpu else None
        self._results = PinnedResults(STEP_RESULTS) if on_real_gpu else None
        self._graphs = Graphs(graph and on_real_gpu)
        self._views = {}
        self._losses_gathered = 0
        self._batch = None

    # ------------------------------------------------------------------------------------------------ parameters

    def load_pieces(self, pieces):
        """Set parameters from (name, layer, float array) triples, one for each tensor of each layer. Optimizer state starts anew."""
        parts = {(part[3].name, part[3].layer): part for part in self.sharing.state.parts()}
        for name, layer, values in pieces:
            target = getattr(self.params, name)
            target = target[layer] if isinstance(target, list) else target
            if tuple(values.shape) != tuple(target.shape):
                raise ValueError(f"load_pieces: {name} must be {tuple(target.shape)} for each layer, got {tuple(values.shape)}")
            self._write(target, values)
            if "master" in self._memory:
                local, start, length, segment = parts[name, layer]
                mine = values.reshape(-1)[start - segment.start : start - segment.start + length]
                self._write(self._memory["master"][local : local + length], mine)
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
        """One of the flat arrays "params", "grads", "m", "v", "master" as it lies in memory; or None.

        All tensors in the table's order; with ZeRO, m, v and master, and with stage 2 grads, have this process's parts only (see `sharing`).
        """
        return self._memory.get(which)

    def load_part(self, which, start, values):
        """Overwrite a flat array (see `raw`) from place `start` on with host `values`, converting between float32 and bfloat16 bits.

        In pieces, since `values` may be a memory map of gigabytes. Raises ValueError where they do not fit in.
        """
        target = self._memory[which]
        if start + len(values) > len(target):
            raise ValueError(f"load_part: {which} has {len(target)} numbers, got {len(values)} to be put at {start}")
        for done in range(0, len(values), LOAD_PIECE):
            piece = np.asarray(values[done : done + LOAD_PIECE])
            if piece.dtype == BFLOAT16_BITS and target.dtype == FLOAT32:
                piece = bfloat16_values(piece)
            self._write(target[start + done : start + done + len(piece)], piece)

    def params_to_host(self):
        """All parameters, name -> float32 array of the table's shape (a copy)."""
        return self._to_host("params")

    def grads_to_host(self):
        """All gradients, name -> float32 array of the table's shape (a copy). With zero_stage 2 there is no such thing: RuntimeError."""
        if self.sharing.stage == 2:
            raise RuntimeError("grads_to_host: with ZeRO stage 2 no process has all gradients; raw('grads') are this one's parts")
        return self._to_host("grads")

    def _to_host(self, which):
        flat, tensors, start = self._read(self._memory[which]), {}, 0
        for name, shape in parameter_shapes(self.config).items():
            tensors[name] = flat[start : start + math.prod(shape)].reshape(shape)
            start += math.prod(shape)
        return tensors

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
            raise UserError(
                f"{name} must be tokens from 0 to V - 1 = {self.config.V - 1}, got {low if low < 0 else high}: is the data another vocabulary's?"
            )
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
        self._gradients.zero()

    def backward(self, targets, grad_accum_steps=1, last=True):
        """Loss of the last forward pass against `targets` (b, t), and its gradients, divided by grad_accum_steps and accumulated.

        With several processes: divided by their number as well, and in the last backward pass of a step summed over them.
        """
        if self._batch is None:
            raise RuntimeError("backward: call forward first; each forward pass serves one backward pass")
        (acts, inputs), self._batch = self._batch, None  # the logits are about to become gradients
        self._load_tokens("targets", acts.targets, targets)
        places, pieces = places_by_token(inputs, self.config.V)
        self._write_numbers(acts.places, places)
        self._write_numbers(acts.pieces, pieces)
        key = "backward", inputs.shape, grad_accum_steps, last
        self._graphs.run(key, lambda: self._backward(acts, grad_accum_steps, last))
        self._losses_gathered += 1

    def _backward(self, acts, grad_accum_steps, last):
        p, g, sums, dresidual = self.params, self.grads, self._memory["sums"], acts.dresidual
        dloss = 1 / (acts.inputs.size * grad_accum_steps * self.group.ranks)
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
            self._gradients.layer_done(l, last)

        encoder_backward(g.wte, g.wpe, dresidual, acts.places, acts.pieces, sums, acts.inputs.shape[1])
        self._gradients.all_done(last)

    def rehearse(self):
        """A forward and a backward pass on random tokens, which leave nothing behind: kernels are compiled and matrix products planned."""
        tokens = np.random.default_rng(0).integers(self.config.V, size=(self.B, self.T), dtype=np.int32)
        graphs, self._graphs = self._graphs, Graphs(False)  # plans may still change: nothing is recorded yet
        self.forward(tokens)
        self.backward(tokens, last=False)
        self._graphs, self._losses_gathered = graphs, 0
        zero(self._memory["shared_results"])
        self.zero_grad()

    def moment(self):
        """The moment at which the device has done all that was asked of it so far: see gpu/moment.py. Waits for nothing."""
        return HostMoment() if self._results is None else GpuMoment()

    def synchronize(self):
        """Wait until the device has done all that was asked of it."""
        if self.device == "gpu":
            synchronize()

    # ------------------------------------------------------------------------------------------------------ update

    def measure(self, max_norm=math.inf, stop=False):
        """Ask for the loss of the batches since the last call (see take_loss) and the norm of all gradients together.

        Returns a function that waits for the device and gives (loss, norm, stopping); it must be called before measure is called twice more.
        With several processes the loss is the mean over them, and `stopping` is true in all of them if `stop` was in any.
        If the norm is larger than max_norm, the updates until the next call scale the gradients so that it is max_norm.
        """
        if not self._losses_gathered:
            raise RuntimeError("measure: no loss has been computed since the last call")
        memory, losses, self._losses_gathered = self._memory, self._losses_gathered * self.group.ranks, 0
        if stop:
            self._write_numbers(memory["stop_requests"], np.ones(1, np.float32))
        self._graphs.run(("measure", max_norm), lambda: self._measure(max_norm))
        results = memory["step_results"]
        wait = self._read(results).tolist if self._results is None else self._results.fetch(results)
        zero(memory["shared_results"])

        def loss_norm_stopping():
            norm, _, sum_of_losses, stop_requests = wait()
            return sum_of_losses / losses, norm, stop_requests > 0

        return loss_norm_stopping

    def _measure(self, max_norm):
        memory, shared = self._memory, [self._memory["shared_results"]]
        sum_of_squares(memory["norm_partials"], memory["grads"], memory["norm_ranges"])
        self.group.begin()
        self.group.all_reduce(shared if self.sharing.stage == 0 else [memory["norm_partials"], *shared])
        self.group.end()
        norm_and_scale(memory["norm_and_scale"], memory["norm_partials"], max_norm)

    def update(self, step, learning_rate, weight_decay=0.0, beta1=0.9, beta2=0.95, eps=1e-8, rounding_seed=0):
        """One step of AdamW on all parameters, their gradients scaled as the last call of `measure` has found necessary.

        step counts from 0; rounding_seed, below 2**32, chooses the noise of stochastic rounding and should differ from step to step,
        but not from process to process.
        """
        t = step + 1
        self._write_numbers(self._memory["step_values"], np.array([learning_rate, 1 - beta1**t, 1 - beta2**t], np.float32))
        self._write_numbers(self._memory["rounding_seed"], np.array([rounding_seed], np.uint32))
        constants = beta1, beta2, eps, weight_decay
        self._graphs.run(("update", *constants), lambda: self._update(constants))

    def _update(self, constants):
        arrays = "params", "grads", "m", "v", "master", "step_values", "rounding_seed", "norm_and_scale", "ranges"
        arrays = [self._memory.get(name) for name in arrays]
        done = 0
        # With ZeRO a matrix, of all layers, is sent to the other processes while what follows it is updated.
        if self.sharing.stage > 0:
            for name, of_matrix in itertools.groupby(self.sharing.state.parts(), key=lambda part: part[3].name):
                if name not in MATRICES:
                    continue
                of_matrix = list(of_matrix)
                local, _, length, _ = of_matrix[-1]
                adamw_update(*arrays, *constants, first=done, stop=local + length)
                done = local + length
                self.group.begin()
                self.group.all_gather(
                    [(self._memory["params"][s.start : s.stop], self.sharing.state.bounds_within(s)) for *_, s in of_matrix]
                )
        adamw_update(*arrays, *constants, first=done)
        self.group.end()
