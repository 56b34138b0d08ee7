"""Generating text token by token, with the keys and values of earlier tokens kept: a new token costs one row, not the whole context.

Decoder  reads a prompt in one ordinary forward pass, then takes one token at a time for each of B sequences, and gives the logits of the
         next. It works on any GPT2: on one in training, whose arrays it borrows between two steps, or on a ForwardModel
ForwardModel  a GPT2 without gradients and optimizer, for programs that do not train

The keys and values lie where a forward pass leaves them for backward: in the qkv of each block. A forward pass over a prompt thus fills the
cache by itself. What a token needs beyond that, a GPT2 has already, too, since most of its arrays are idle while it does not train:

    cache             qkv[l], as (B, T, 3C)
    qkv, new token    dqkv              position             targets[:1]
    wpe[position]     dbranch[:1]       partial results      fch[0], written only after attention has been done

So the trainer's samples take no memory of their own. The layers are called in the order of layer_order.py, as in training, with one
difference: attention is that of one query (layers/attention/one_query.py). The fast kernels have another order for a single text
(fused_layer_order.forward_one_row). On a GPU the launches of a token are recorded once and replayed (gpu/graph.py); so the position lies in
memory, and wpe's row is copied to one place.

A model sees at most T tokens. When they are T and another one comes, the oldest `slide` tokens are dropped, and the rest is read again in
one forward pass, at its new positions. With slide = 1 each token is predicted from all T before it, at the price of a forward pass for each;
with T // 2, the default, from at least T - T // 2, and a forward pass is needed only every T // 2 tokens.
"""

import math
from types import SimpleNamespace

import numpy as np

from gpt2_numba import fused_layer_order, layer_order
from gpt2_numba.config import count_parameters
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.arena import Arena, free_gpu_bytes
from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, bfloat16_values, compute_stream, on_host, real_gpu, require_gpu
from gpt2_numba.gpu.cublaslt import WORKSPACE_BYTES
from gpt2_numba.gpu.gemm import allow_tf32
from gpt2_numba.gpu.graph import Graphs
from gpt2_numba.gpu.staging import Mirror, PinnedRing, copy_row
from gpt2_numba.integers import ceil_div, round_up
from gpt2_numba.layers.attention.one_query import attention_one_query
from gpt2_numba.layers.fast import attention as fast_attention
from gpt2_numba.layers.fast.attention import one_query as fast_one_query
from gpt2_numba.layers.fast.encoder import most_pieces
from gpt2_numba.memory_fit import free_host_bytes
from gpt2_numba.memory_plan import ALIGNMENT, STATISTICS, activation_shapes, transient_shapes
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options
from gpt2_numba.parallel.gradients import tensors_by_name
from gpt2_numba.parallel.shards import Shards

SHORTEST_PASS = 32  # a prompt is padded to 32, 64, 128, ... tokens: few different shapes, little wasted work


class Decoder:
    """Takes tokens, gives the logits of the next: for B sequences of equal length side by side.

    model  GPT2, whose activations may be overwritten     B      sequences; B * T at most the rows of the model's batch
    slide  tokens that are dropped when the context is full, 1 to T; None: T // 2
    Raises ValueError if the model's arrays are too small for B sequences.
    """

    def __init__(self, model, B=1, slide=None):
        config, T, C = model.config, model.T, model.config.C
        if B * T * 3 * C > model.memory["qkv"].shape[1]:
            raise ValueError(f"Decoder: the model must have room for B * T = {B} * {T} tokens: give it a larger batch")
        self.model, self.B, self.T, self.slide = model, B, T, slide or max(1, T // 2)
        self.tokens = np.empty((B, 0), np.int32)  # those that the cache holds, and that the next logits follow
        self._forward = fused_layer_order.forward if model.kernels.fused else layer_order.forward
        if model.kernels.fused and B == 1:
            self._forward = fused_layer_order.forward_one_row
        self._cache = [rows[: B * T * 3 * C].reshape(B, T, 3 * C) for rows in (model.memory["qkv"][l] for l in range(config.L))]
        acts = model.activations(B, 1)
        self._acts = SimpleNamespace(**vars(acts) | {"qkv": [acts.dqkv] * config.L})
        self._position, self._wpe_row = acts.targets[:1], acts.dbranch[:1]
        self._inputs_mirror, self._position_mirror, self._logits_mirror = map(Mirror, (acts.inputs, self._position, acts.logits))
        self._partials = model.memory["fch"][0].view(FLOAT32) if model.kernels.fused else None
        self._view = SimpleNamespace(  # of the model, as the order of the layers needs it, with one row for wpe
            config=config, kernels=model.kernels, memory=model.memory, gelu_fusion=model.gelu_fusion,
            params=SimpleNamespace(**vars(model.params) | {"wpe": self._wpe_row}),
        )  # fmt: skip

    def read(self, tokens):
        """Start over with the tokens (B, t) int32, t from 1 to T, in one forward pass for each different row. Returns logits (B, V) float32."""
        B, t = tokens.shape
        if B != self.B or not 1 <= t <= self.T:
            raise ValueError(f"Decoder.read: tokens must be (B, t) = ({self.B}, 1 to {self.T}), got {tokens.shape}")
        self.tokens = tokens
        inputs = np.zeros((1, padded_length(t, self.T)), np.int32)
        if (tokens == tokens[0]).all():
            logits = self._read_row(inputs, tokens[0])
            for b in range(1, B):
                self._copy_first_row(b, t)
            return np.broadcast_to(logits, (B, len(logits)))
        logits = [None] * B
        for b in reversed(range(B)):  # each is read into the place of the first sequence, which comes last
            logits[b] = self._read_row(inputs, tokens[b])
            if b:
                self._copy_first_row(b, t)
        return np.stack(logits)

    def _read_row(self, inputs, tokens):
        inputs[0, : len(tokens)] = tokens  # the padding after them has no effect, since attention is causal
        self.model.forward(inputs)
        return self.model.last_logits(len(tokens) - 1)

    def _copy_first_row(self, b, t):
        for cache in self._cache:
            _copy(cache[b, :t], cache[0, :t])

    def step(self, tokens):
        """Append one token to each sequence: (B,) integers. Returns the logits of the next, (B, V) float32."""
        position = self.tokens.shape[1]
        self.tokens = np.concatenate([self.tokens, np.array(tokens, np.int32)[:, None]], axis=1)
        if position == self.T:
            return self.read(self.tokens[:, self.slide :])
        self._inputs_mirror.send(self.tokens[:, position:])
        self._position_mirror.send(position)
        copy_row(self._wpe_row, self.model.params.wpe, position)
        self.model.graphs.run(("one token", self.B), lambda: self._forward(self._view, self._acts, self._attend))
        logits = self._logits_mirror.fetch()[:, : self.model.config.V]
        return bfloat16_values(logits) if logits.dtype == BFLOAT16_BITS else logits.copy()

    def _attend(self, l):
        arguments = self._acts.atty[l], self._cache[l], self._acts.qkv[l], self._position
        if self.model.kernels.fused:
            fast_one_query.attention_one_query(*arguments, partials=self._partials, NH=self.model.config.NH)
        else:
            attention_one_query(*arguments, NH=self.model.config.NH)


def generate(decoder, prompt, count, choosers, end):
    """Yield up to `count` new tokens of each of the decoder's B sequences, which all begin with the prompt.

    prompt    tokens, at least one. If they are more than T, it is shortened as if its last tokens had been appended one by one
    choosers  B functions (logits (V,) float32) -> token
    end       token with which a sequence ends
    Yields lists of B tokens; None for a sequence that has ended. Stops when all have.
    """
    excess = max(0, len(prompt) - decoder.T)
    prompt = np.array(prompt[ceil_div(excess, decoder.slide) * decoder.slide :], np.int32)
    logits, tokens = decoder.read(np.tile(prompt, (decoder.B, 1))), [None] * decoder.B
    for index in range(count):
        if index:
            logits = decoder.step([end if token is None else token for token in tokens])
        tokens = [None if index and token in (None, end) else choose(row) for choose, row, token in zip(choosers, logits, tokens)]
        yield tokens
        if all(token in (None, end) for token in tokens):
            return


def padded_length(t, T):
    """The length of the forward pass that reads t tokens: 32, 64, 128, ... and at most T."""
    length = SHORTEST_PASS
    while length < t:
        length *= 2
    return min(length, T)


def _copy(target, source):
    """Copy between two arrays on the host, or two on the device, without waiting."""
    if on_host(target):
        target[:] = source
    else:
        target.copy_to_device(source, stream=compute_stream())


# ------------------------------------------------------------------------------------------------- a model without training


class ForwardModel(GPT2):
    """A GPT2 that only computes logits: parameters, the arrays of one block, and the keys and values of all. It cannot train.

    config   GPT2Config                          B, T  sequences that a Decoder generates side by side, and their longest context
    options  Options: device, precision, kernels; those of training are without effect
    rows     sequences that one call of `forward` takes; a Decoder reads one at a time
    Raises UserError if these do not go together or memory is too small. Parameters are undefined until they are loaded.
    """

    def __init__(self, config, B, T, options=None, rows=1):
        options = options or Options()
        on_gpu = options.device == "gpu"
        if on_gpu:
            require_gpu()
            allow_tf32(options.tf32)  # before memory is planned, see GPT2
        self.config, self.B, self.T, self.options = config, rows, T, options
        self.kernels, self.gelu_fusion = options.kernel_set, options.gelu_fusion if real_gpu() else 0
        self.arena = plan_forward_memory(config, B, T, options, rows)
        check_forward_memory(self.arena, config, B, T, options)
        self.memory = self.arena.allocate(on_gpu)
        self.params = tensors_by_name(Shards(config), lambda segment: self.memory["params"][segment.start : segment.stop])
        self.graphs = Graphs(options.graph and on_gpu and self.kernels.fused)
        self._order = fused_layer_order if self.kernels.fused else layer_order
        self._staging = PinnedRing(max(rows * T, B)) if on_gpu and real_gpu() else None
        self._views = {}
        self._batch = None

    def load_pieces(self, pieces):
        """Set parameters from (name, layer, float array) triples, one for each tensor of each layer."""
        for name, layer, values in pieces:
            self._load_piece(name, layer, values)


def plan_forward_memory(config, B, T, options, rows=1):
    """All arrays of a ForwardModel, as an Arena: those of memory_plan.py that a forward pass uses, one for all blocks except qkv."""
    real, fused = FLOAT32 if options.precision == "fp32" else BFLOAT16_BITS, options.kernel_set.fused
    tokens, L, C = max(rows * T, B), config.L, config.C  # of the largest batch; B of one token each
    arena = Arena()
    arena.add("parameters", "params", (count_parameters(config),), real)
    arena.add("keys and values", "qkv", (L, 3 * C * max(tokens, B * T)), real)
    for name, shape in activation_shapes(config, tokens, 1).items():
        if name != "qkv":
            arena.add("activations", name, (1, math.prod(shape)), FLOAT32 if name in STATISTICS else real)
    for name in ("encoded", "lnf", "dresidual", "dbranch"):
        arena.add("activations", name, (tokens * C,), real)
    for name in ("lnf_mean", "lnf_rstd", "losses"):
        arena.add("activations", name, (tokens,), FLOAT32)
    transient = (sum(round_up(math.prod(s), ALIGNMENT) for s in shapes.values()) for shapes in transient_shapes(config, tokens, 1, fused))
    arena.add("logits and scratch", "transient", (max(transient),), real)
    for name in ("inputs", "targets"):
        arena.add("tokens", name, (tokens,), np.int32)
    if fused:
        scratch = fast_attention.attention_scratch_size(rows, T, config.NH, config.HS, real)
        arena.add("logits and scratch", "att_scratch", (scratch,), FLOAT32)
        arena.add("tokens", "places", (tokens,), np.int32)
        arena.add("tokens", "pieces", (most_pieces(tokens, config.V) + 1, 3), np.int32)
    return arena


def check_forward_memory(arena, config, B, T, options):
    """Raise UserError if a ForwardModel's arrays do not fit into the memory that is free."""
    on_real_gpu = options.device == "gpu" and real_gpu()
    needed, free = arena.nbytes + on_real_gpu * WORKSPACE_BYTES, free_gpu_bytes() if on_real_gpu else free_host_bytes()
    if needed > free:
        raise UserError(
            f"too little {'GPU ' if on_real_gpu else ''}memory: generating {B} texts of up to {T} tokens with {config} in {options.precision} "
            f"needs {needed / 2**30:.2f} GiB, but {free / 2**30:.2f} GiB are free. Use fewer samples, a shorter context"
            f"{' or bf16' if on_real_gpu and options.precision == 'fp32' else ''}"
        )
