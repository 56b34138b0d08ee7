"""GPT2: a model in training. Its parameters, gradients and activations, and the four things a trainer asks of it:

    forward(inputs)      the logits of a batch                     measure()     the loss and the norm of the gradients
    backward(targets)    the gradients, accumulated                update(...)   one step of AdamW

The order in which the layers are called is in layer_order.py, the arrays are listed in memory_plan.py, and kernel_sets.py says whose
functions are called: NumPy's on the CPU, or one of the sets of kernels.

Several processes may train one model, each on its part of the batch (parallel/gradients.py). With ZeRO each of them updates its own part of
the parameters, and keeps AdamW's averages and the master weights of that part only (parallel/shards.py).
"""

import math

import numpy as np

from gpt2_numba import float8_layer_order, fused_layer_order, layer_order
from gpt2_numba.config import ONCE, parameter_shapes
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.arena import free_gpu_bytes, zero
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
    to_storage,
)
from gpt2_numba.gpu.gemm import allow_tf32
from gpt2_numba.gpu.graph import Graphs
from gpt2_numba.gpu.moment import GpuMoment, HostMoment
from gpt2_numba.gpu.staging import PinnedResults, PinnedRing
from gpt2_numba.layers.fast.encoder import most_pieces
from gpt2_numba.memory_fit import check_memory, free_host_bytes
from gpt2_numba.memory_plan import STEP_RESULTS, activation_views, plan_memory
from gpt2_numba.options import Options
from gpt2_numba.parallel.gradients import Gradients, ShardedGradients, tensors_by_name
from gpt2_numba.parallel.group import Alone
from gpt2_numba.parallel.shards import Sharing

LOAD_PIECE = 1 << 24  # numbers converted and copied at a time


class GPT2:
    """A model in training: parameters, gradients, optimizer state and activations for batches of up to B * T tokens.

    config   GPT2Config        B, T  rows of a batch, of T tokens or, more of them, shorter ones; T at most config.max_T
    options  Options: device, precision, kernels and so on
    group    the processes that train this model together (parallel/group.py); None: this one alone
    Raises UserError if these do not go together or memory is too small. Parameters are zero until they are loaded.
    """

    def __init__(self, config, B, T, options=None, group=None):
        options = options or Options()
        if T > config.max_T:
            raise UserError(f"the sequence length T={T} must be at most the model's longest context, {config.max_T}: use -t {config.max_T}")
        on_real_gpu = options.device == "gpu" and real_gpu()
        if options.device == "gpu":
            require_gpu()
            allow_tf32(options.tf32)  # before memory is planned: attention's scratch depends on it
        self.config, self.B, self.T, self.options, self.kernels = config, B, T, options, options.kernel_set
        self.gelu_fusion = options.gelu_fusion if on_real_gpu and self.kernels.fused else 0
        self.group = group or Alone()
        self.sharing = Sharing(config, self.group.rank, self.group.ranks, options.zero_stage)
        check_memory(config, B, T, options, free_gpu_bytes() if on_real_gpu else free_host_bytes(), self.sharing)
        self.arena = plan_memory(config, B, T, options, self.sharing)
        self.memory = self.arena.allocate(on_gpu=options.device == "gpu")
        results = self.memory["step_results"]  # contiguous, so that one copy brings all of them to the host
        self.memory["norm_and_scale"], self.memory["mean_loss"], self.memory["stop_requests"] = results[:2], results[2:3], results[3:]
        self.memory["shared_results"] = results[2:]  # summed over the processes
        for name in ("params", "grads", "layer_grads", "m", "v", "shared_results"):
            if name in self.memory:
                zero(self.memory[name])
        self._write(self.memory["norm_and_scale"], np.ones(2, np.float32))
        if self.kernels.fused:
            self._write(self.memory["ranges"], self.sharing.update_ranges())
            self._write(self.memory["norm_ranges"], self.sharing.norm_ranges())
        self.params = tensors_by_name(self.sharing.state, lambda segment: self.memory["params"][segment.start : segment.stop])
        self.gradients = (ShardedGradients if self.sharing.stage == 2 else Gradients)(self.memory, self.sharing, self.group)
        self.grads = self.gradients.by_name
        self.graphs = Graphs(options.graph and on_real_gpu and self.kernels.fused)
        self._order = float8_layer_order if options.float8 else fused_layer_order if self.kernels.fused else layer_order
        self._staging = PinnedRing(max(B * T, 3 * most_pieces(B * T, config.V) + 3)) if on_real_gpu else None
        self._results = PinnedResults(STEP_RESULTS) if on_real_gpu else None
        self._views, self._losses_gathered = {}, 0
        self._batch, self.weights_changed = None, True

    # ------------------------------------------------------------------------------------------------ parameters

    def load_pieces(self, pieces):
        """Set parameters from (name, layer, float array) triples, one for each tensor of each layer; resets the optimizer's state."""
        parts = {(segment.name, segment.layer): (*part, segment.start) for *part, segment in self.sharing.state.parts()}
        for name, layer, values in pieces:
            stored = self._load_piece(name, layer, values)
            if "master" in self.memory:
                local, start, length, first = parts[name, layer]
                mine = stored.reshape(-1)[start - first : start - first + length]
                self._write(self.memory["master"][local : local + length], bfloat16_values(mine))  # as in llm.c: rounded copies
        for name in ("m", "v"):
            zero(self.memory[name])

    def _load_piece(self, name, layer, values):
        target = getattr(self.params, name)
        target = target[layer] if isinstance(target, list) else target
        if tuple(values.shape) != tuple(target.shape):
            raise ValueError(f"load_pieces: {name} must be {tuple(target.shape)} for each layer, got {tuple(values.shape)}")
        stored, self.weights_changed = to_storage(values, target.dtype), True
        self._write(target, stored)
        return stored  # float32, or bfloat16 bits

    def load_params(self, tensors):
        """Set all parameters: name -> float array, shaped as parameter_shapes says. Resets the optimizer's state."""
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

        All tensors in the table's order; with ZeRO, m, v and master, and with stage 2 grads, have this process's parts only (`sharing`).
        """
        return self.memory.get(which)

    def load_part(self, which, start, values):
        """Overwrite a flat array (see `raw`) from place `start` on with host `values`, converting between float32 and bfloat16 bits.

        In pieces, since `values` may be a memory map of gigabytes. Raises ValueError where they do not fit in.
        """
        target, self.weights_changed = self.memory[which], True
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
        flat, tensors, start = self._read(self.memory[which]), {}, 0
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

    def activations(self, B, T):
        """Views of the activations for a batch of (B, T) tokens (memory_plan.activation_views); made once for each size."""
        if (B, T) not in self._views:
            self._views[B, T] = activation_views(self.memory, self.config, B, T, self.kernels.fused)
        return self._views[B, T]

    def _load_tokens(self, name, target, tokens):
        tokens = np.ascontiguousarray(tokens, np.int32)
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.config.V:
            raise UserError(
                f"{name} must be tokens from 0 to V - 1 = {self.config.V - 1}, got {low if low < 0 else high}: is the data another vocabulary's?"
            )
        self.write_numbers(target, tokens)
        return tokens

    def write_numbers(self, target, values):
        """Copy numbers of four bytes to the device without waiting for what it is doing."""
        if self._staging is None:
            self._write(target, values.reshape(target.shape))
        else:
            self._staging.copy(target, values)

    # ----------------------------------------------------------------------------------------------- forward pass

    def forward(self, inputs):
        """Compute the logits of a batch. inputs: (b, t) int32 host array, t at most T, b * t at most B * T."""
        b, t = inputs.shape
        if b * t > self.B * self.T or t > self.T:
            raise ValueError(f"forward: inputs must be {self.B * self.T} tokens at most, in rows of up to {self.T}, got {inputs.shape}")
        acts = self.activations(b, t)
        self._batch = (acts, self._load_tokens("inputs", acts.inputs, inputs))
        float8_layer_order.refresh_weights(self)  # with options.float8
        self.graphs.run(("forward", b, t), lambda: self._order.forward(self, acts))

    def evaluate(self, inputs, targets):
        """Forward pass, and the mean loss against `targets` (b, t), to be had from take_loss. No gradients."""
        self.forward(inputs)
        acts, _ = self._batch
        self._load_tokens("targets", acts.targets, targets)
        self._order.losses(self, acts)
        self._losses_gathered += 1

    def take_loss(self):
        """Mean loss (nats per token) of the batches since the last call, as a float. Waits for the device."""
        if not self._losses_gathered:
            raise RuntimeError("take_loss: no loss has been computed since the last call")
        loss = float(self._read(self.memory["mean_loss"])[0]) / self._losses_gathered
        self.discard_losses()
        return loss

    def discard_losses(self):
        """Forget the batches since the last call of take_loss or measure."""
        zero(self.memory["shared_results"])
        self._losses_gathered = 0

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
        self.gradients.zero()

    def backward(self, targets, grad_accum_steps=1, last=True):
        """Loss of the last forward pass against `targets` (b, t), and its gradients, divided by grad_accum_steps and accumulated.

        With several processes: divided by their number as well, and in the last backward pass of a step summed over them.
        """
        if self._batch is None:
            raise RuntimeError("backward: call forward first; each forward pass serves one backward pass")
        (acts, inputs), self._batch = self._batch, None  # the logits are about to become gradients
        self._load_tokens("targets", acts.targets, targets)
        self._order.prepare_backward(self, acts, inputs)
        dloss = 1 / (inputs.size * grad_accum_steps * self.group.ranks)
        self.graphs.run(("backward", inputs.shape, grad_accum_steps, last), lambda: self._order.backward(self, acts, dloss, last))
        self._losses_gathered += 1

    def rehearse(self):
        """A forward and a backward pass on random tokens, which leave nothing behind: kernels are compiled and matrix products planned."""
        tokens = np.random.default_rng(0).integers(self.config.V, size=(self.B, self.T), dtype=np.int32)
        graphs, self.graphs = self.graphs, Graphs(False)  # plans may still change: nothing is recorded yet
        self.forward(tokens)
        self.backward(tokens, last=False)
        self.graphs = graphs
        self.discard_losses()
        self.zero_grad()

    def moment(self):
        """The moment at which the device has done all that was asked of it so far: see gpu/moment.py. Waits for nothing."""
        return HostMoment() if self._results is None else GpuMoment()

    def synchronize(self):
        """Wait until the device has done all that was asked of it."""
        if self.options.device == "gpu":
            synchronize()

    # ------------------------------------------------------------------------------------------------------ update

    def measure(self, max_norm=math.inf, stop=False):
        """Start to measure the loss of the batches since the last call (see take_loss) and the norm of all gradients together.

        Returns a Measurement; its `wait` must be called before measure is called twice more. If the norm is larger than max_norm, the
        updates until the next call scale the gradients down to it. With several processes the loss is the mean over all of them, and if
        `stop` is true in any, `stopping` is true in all.
        """
        if not self._losses_gathered:
            raise RuntimeError("measure: no loss has been computed since the last call")
        memory, losses, self._losses_gathered = self.memory, self._losses_gathered * self.group.ranks, 0
        if stop:
            self.write_numbers(memory["stop_requests"], np.ones(1, np.float32))
        self.graphs.run(("measure", max_norm), lambda: self._measure(max_norm))
        results = memory["step_results"]
        fetch = self._read(results).tolist if self._results is None else self._results.fetch(results)
        zero(memory["shared_results"])
        return Measurement(fetch, losses)

    def _measure(self, max_norm):
        shared = [self.memory["shared_results"]]
        self._order.sum_of_squares(self)
        self.group.begin()
        self.group.all_reduce(shared if self.sharing.stage == 0 else [self.memory["norm_partials"], *shared])
        self.group.end()
        self._order.norm_and_scale(self, max_norm)

    def update(self, step, learning_rate, weight_decay=0.0, beta1=0.9, beta2=0.95, eps=1e-8, rounding_seed=0):
        """One step of AdamW on all parameters, their gradients scaled as the last call of `measure` has found necessary.

        If `measure` has found a loss or norm that is not finite, nothing changes.
        step counts from 0; rounding_seed, below 2**32, chooses the noise of stochastic rounding and should differ from step to step,
        but not from process to process.
        """
        self._order.update(self, step, learning_rate, weight_decay, beta1, beta2, eps, rounding_seed)
        self.weights_changed = True


class Measurement:
    """The loss and the gradient norm of a step, on their way from the device to the host."""

    def __init__(self, fetch, losses):
        """fetch: a function that waits for the step_results of memory_plan.py. losses: how many mean losses have been added up."""
        self._fetch, self._losses = fetch, losses

    def wait(self):
        """(loss, norm, stopping): nats per token, the norm before clipping, whether any process asked to stop. Waits for the device."""
        norm, _, sum_of_losses, stop_requests = self._fetch()
        return sum_of_losses / self._losses, norm, stop_requests > 0
