"""Gradients summed over all processes, layer by layer, while the backward pass still runs.

Each process computes gradients of its own part of the batch. Their sum is the gradient of the whole batch, since every process divides its
loss by the total number of tokens. A layer's gradients are complete when backward leaves it, and in the last micro-step of a step they are
sent at once, on a stream of their own, while the layers below are still being computed:

    compute   | ... layer 2 | layer 1 | layer 0 | embedding |                     | norm | update
    messages                | layer 2 | layer 1 | layer 0   | embeddings, vectors |

A layer's message holds its matrices. The vectors (biases, LayerNorms) of all layers, contiguous in memory, are sent together at the end.

What each process receives depends on the stage of ZeRO (Rajbhandari et al. 2019, arXiv:1910.02054):

    stage 0    the whole sum: every process updates all parameters                                                all-reduce
    stage 1    the sum of its own parts (see shards.py): it updates them, then all exchange their parameters      reduce-scatter
    stage 2    the same, but of the layers' matrices it keeps only its own parts: the layers are sent in every    reduce-scatter
               micro-step, and the sums are accumulated in these parts
    any        the whole sum of the vectors: every process updates all of them                                    all-reduce

An all-reduce is a reduce-scatter followed by an all-gather, so stages 0 and 1 move the same number of bytes. Stage 2 moves more with every
micro-step, and saves the memory of the gradients of other processes' parts.
"""

from types import SimpleNamespace

from gpt2_numba.config import ONCE, parameter_shapes
from gpt2_numba.gpu.arena import zero
from gpt2_numba.gpu.backend import on_host
from gpt2_numba.layers import residual
from gpt2_numba.layers.fast import residual as fast_residual

BUFFERS = 2  # of stage 2: one layer is computed while the one above it is being summed


class Gradients:
    """Stages 0 and 1: all gradients of this process stay in memory until the end of the step.

    by_name  attributes by tensor name, into which backward accumulates: an array, or a list with an array for each layer
    """

    def __init__(self, memory, sharing, group):
        """memory: the arena's arrays; `grads` is flat, laid out by sharing.grads. sharing: a Sharing. group: a Group."""
        self._memory, self._sharing, self._group = memory, sharing, group
        self._layers = [sharing.layer_matrices(layer) for layer in range(sharing.grads.config.L)]
        self._embeddings = sharing.embeddings()
        self._vectors = [memory["grads"][start:stop] for start, stop in sharing.vector_runs()]
        self.by_name = tensors_by_name(sharing.grads, self._array)

    def zero(self):
        """Start a step."""
        zero(self._memory["grads"])

    def layer_done(self, layer, last):
        """To be called when backward leaves a layer. last: this is the last micro-step of the step."""
        if last:
            self._send(self._layers[layer])

    def all_done(self, last):
        """To be called at the end of backward. If it is the last of a step, whatever is queued on the compute stream next sees the sums."""
        if last:
            self._send(self._embeddings)
            self._group.all_reduce(self._vectors)
            self._group.end()

    def _array(self, segment):
        start = self._sharing.grads.local_position(segment, segment.start)
        return self._memory["grads"][start : start + segment.length]

    def _send(self, segments):
        self._group.begin()
        if self._sharing.stage == 0:
            self._group.all_reduce([self._array(segment) for segment in segments])
        else:
            self._group.reduce_scatter([(self._array(segment), self._sharing.state.bounds_within(segment)) for segment in segments])


class ShardedGradients(Gradients):
    """Stage 2: of the layers' matrices only this process's parts of the sums stay in memory; backward accumulates a layer's into a buffer.

    memory: `grads` and `layer_grads` (BUFFERS, elements of a layer's matrices), whose buffers are zero while no layer uses them
    """

    def __init__(self, memory, sharing, group):
        self._slices = {}  # segment of a layer's matrix -> slice of a buffer
        for layer in range(sharing.grads.config.L):
            start = 0
            for segment in sharing.layer_matrices(layer):
                self._slices[segment] = slice(start, start + segment.length)
                start += segment.length
        super().__init__(memory, sharing, group)

    def _array(self, segment):
        return self._buffer(segment.layer)[self._slices[segment]] if segment in self._slices else super()._array(segment)

    def layer_done(self, layer, last):
        self._group.end()
        self._send(self._layers[layer])
        if layer + 1 < len(self._layers):
            self._accumulate_layer(layer + 1)

    def all_done(self, last):
        self._group.end()
        self._accumulate_layer(0)
        super().all_done(last)

    def _buffer(self, layer):
        return self._memory["layer_grads"][layer % BUFFERS]

    def _accumulate_layer(self, layer):
        """Add the sums over all processes to this one's parts. This frees the buffer, for the layer after the next."""
        own, grads = self._sharing.state, self._sharing.grads
        for segment in self._layers[layer]:
            start, stop = own.bounds_within(segment)[own.rank : own.rank + 2]
            if start < stop:
                local = grads.local_position(segment, segment.start + start)
                add_to(self._memory["grads"][local : local + stop - start], self._array(segment)[start:stop])
        zero(self._buffer(layer))


def add_to(total, values):
    """total += values. total [+], values [r]: 1-D, of one length and type. The residual connection is the same sum: its kernel runs."""
    layer = residual if on_host(total) else fast_residual
    total, values = total.reshape((1, total.size)), values.reshape((1, values.size))
    layer.residual_forward(out=total, inp=total, branch=values)


def tensors_by_name(shards, get_array):
    """Attributes by tensor name, with the shapes of parameter_shapes: an array, or a list of L arrays for the tensors that each layer has.

    get_array  function of a Segment that returns its elements, flat
    """
    tensors = SimpleNamespace(**{name: [] for name in parameter_shapes(shards.config)})
    shapes = parameter_shapes(shards.config)
    for segment in shards.segments:
        shape = shapes[segment.name]
        if segment.name in ONCE:
            setattr(tensors, segment.name, get_array(segment).reshape(shape))
        else:
            getattr(tensors, segment.name).append(get_array(segment).reshape(shape[1:]))
    return tensors
