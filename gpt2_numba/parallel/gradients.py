"""The gradients of all processes become one: summed while the backward pass still runs, a layer at a time.

Each process has a part of the batch, and gradients of its own. Their sum is that of the whole batch, since every process has divided its loss
by the number of all tokens. A layer's gradients are complete when backward leaves it, and in the last micro-step of a step they are
sent on their way at once, on a stream of their own, while the layers below are still at work:

    compute   | ... layer 2 | layer 1 | layer 0 | embedding |                     | norm | update
    messages                | layer 2 | layer 1 | layer 0   | embeddings, vectors |

A layer's message has its matrices. The vectors (biases, LayerNorms) of all layers lie side by side in memory, and go together at the end.

What each process gets depends on the stage of ZeRO (Rajbhandari et al. 2019, arXiv:1910.02054):

    stage 0    the whole sum: every process updates all parameters                                                all-reduce
    stage 1    the sum of its own parts (see shards.py): it updates these, then all get the parameters together   reduce-scatter
    stage 2    likewise, and of the layers' matrices it keeps no others: every micro-step the layers are sent,    reduce-scatter
               and what comes is added to the parts that it has
    any        the whole sum of the vectors: every process updates all of them                                    all-reduce

An all-reduce is a reduce-scatter with an all-gather behind it, so stages 0 and 1 move the same number of bytes. Stage 2 moves more, the more
micro-steps there are, and saves the memory of the gradients of the other processes' parts.
"""

from types import SimpleNamespace

from gpt2_numba.config import ONCE, parameter_shapes
from gpt2_numba.gpu.arena import zero
from gpt2_numba.gpu.backend import on_host
from gpt2_numba.layers import residual
from gpt2_numba.layers.fast import residual as fast_residual

BUFFERS = 2  # of stage 2: a layer is made while the one above it is being summed


class Gradients:
    """Stages 0 and 1: all gradients of this process stay in memory until the step is done.

    by_name        attributes by tensor name, into which backward accumulates: an array, or a list of one for each layer
    """

    def __init__(self, memory, sharing, group):
        """memory: the arena's arrays, `grads` flat, as sharing.grads says. sharing: a Sharing."""
        self._memory, self._sharing, self._group = memory, sharing, group
        self._layers = [sharing.layer_matrices(layer) for layer in range(sharing.grads.config.L)]
        self._embeddings = sharing.embeddings()
        self._vectors = [memory["grads"][start:stop] for start, stop in sharing.runs_of_vectors()]
        self.by_name = tensors_by_name(sharing.grads, self._array)

    def zero(self):
        """A step begins."""
        zero(self._memory["grads"])

    def layer_done(self, layer, last):
        """Backward has left a layer. last: of the last micro-step of a step."""
        if last:
            self._send(self._layers[layer])

    def all_done(self, last):
        """Backward is done: what the compute stream is asked from here on finds this process's gradients summed, if it was the last."""
        if last:
            self._send(self._embeddings)
            self._group.all_reduce(self._vectors)
            self._group.end()

    def _array(self, segment):
        start = self._sharing.grads.place(segment, segment.start)
        return self._memory["grads"][start : start + segment.length]

    def _send(self, segments):
        self._group.begin()
        if self._sharing.stage == 0:
            self._group.all_reduce([self._array(segment) for segment in segments])
        else:
            self._group.reduce_scatter([(self._array(segment), self._sharing.state.bounds_within(segment)) for segment in segments])


class ShardedGradients(Gradients):
    """Stage 2: of the layers' matrices only this process's parts of the sums stay in memory; a layer's gradients are made in a buffer.

    memory: besides `grads`, `layer_grads` (BUFFERS, numbers in the matrices of a layer), zero where no layer is under way
    """

    def __init__(self, memory, sharing, group):
        self._places = {}  # segment of a layer's matrix -> where in a buffer
        for layer in range(sharing.grads.config.L):
            start = 0
            for segment in sharing.layer_matrices(layer):
                self._places[segment] = slice(start, start + segment.length)
                start += segment.length
        super().__init__(memory, sharing, group)

    def _array(self, segment):
        return self._buffer(segment.layer)[self._places[segment]] if segment in self._places else super()._array(segment)

    def layer_done(self, layer, last):
        self._group.end()
        self._send(self._layers[layer])
        if layer + 1 < len(self._layers):
            self._add_up(layer + 1)

    def all_done(self, last):
        self._group.end()
        self._add_up(0)
        super().all_done(last)

    def _buffer(self, layer):
        return self._memory["layer_grads"][layer % BUFFERS]

    def _add_up(self, layer):
        """What has come of the other processes, added to this one's parts. The buffer is free for the next layer but one."""
        own, adder = self._sharing.state, residual if on_host(self._memory["grads"]) else fast_residual
        for segment in self._layers[layer]:
            start, stop = own.bounds_within(segment)[own.rank : own.rank + 2]
            if start < stop:
                place = self._sharing.grads.place(segment, segment.start + start)
                mine = self._memory["grads"][place : place + stop - start].reshape((1, stop - start))
                adder.residual_forward(mine, mine, self._array(segment)[start:stop].reshape((1, stop - start)))
        zero(self._buffer(layer))


def tensors_by_name(shards, array_of):
    """Attributes by tensor name, shaped as in the table: an array, or a list of L arrays for the tensors that each layer has.

    array_of  function of a Segment that gives its numbers, flat
    """
    tensors = SimpleNamespace(**{name: [] for name in parameter_shapes(shards.config)})
    shapes = parameter_shapes(shards.config)
    for segment in shards.segments:
        shape = shapes[segment.name]
        if segment.name in ONCE:
            setattr(tensors, segment.name, array_of(segment).reshape(shape))
        else:
            getattr(tensors, segment.name).append(array_of(segment).reshape(shape[1:]))
    return tensors
