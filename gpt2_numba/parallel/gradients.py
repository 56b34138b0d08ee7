"""The gradients of all processes become one: summed while the backward pass still runs, a layer at a time.

Each process has a part of the batch, and gradients of its own. Their sum is that of the whole batch, since every process has divided its loss
by the number of all tokens. A layer's gradients are complete when backward leaves it, and in the last micro-step of a step they are
sent on their way at once, on a stream of their own, while the layers below are still at work:

    compute   | ... layer 2 | layer 1 | layer 0 | embedding |          | norm | update
    messages                | layer 2 | layer 1 | layer 0   | the rest |

What each process gets depends on the stage of ZeRO (Rajbhandari et al. 2019, arXiv:1910.02054):

    stage 0    the whole sum: every process updates all parameters                                               all-reduce
    stage 1    the sum of its own parts (see shards.py): it updates these, then all get the parameters together  reduce-scatter
    stage 2    likewise, and keeps no others: every micro-step the parts are sent, then added to those it has    reduce-scatter

An all-reduce is a reduce-scatter with an all-gather behind it, so stages 0 and 1 move the same number of bytes. Stage 2 moves more, the more
micro-steps there are, and saves the memory of the gradients of the other processes' parts.
"""

from types import SimpleNamespace

from gpt2_numba.config import ONCE, parameter_shapes
from gpt2_numba.gpu.arena import zero
from gpt2_numba.layers.residual import residual_forward

BUFFERS = 3  # of stage 2: layer l is made while l + 1 is being summed, and the end of l already adds to a bias of l - 1


class Gradients:
    """Stages 0 and 1: all gradients of this process stay in memory until the step is done.

    by_name        attributes by tensor name, into which backward accumulates: an array, or a list of one for each layer
    """

    def __init__(self, memory, shards, group, stage):
        """memory: the arena's arrays, `grads` flat, of all parameters."""
        self._memory, self._shards, self._group, self._stage = memory, shards, group, stage
        self._layers = [[s for s in shards.segments if s.name not in ONCE and s.layer == layer] for layer in range(shards.config.L)]
        self._rest = [s for s in shards.segments if s.name in ONCE]
        self.by_name = tensors_by_name(shards, self._array)

    def zero(self):
        """A step begins."""
        zero(self._memory["grads"])

    def begin_backward(self):
        """A backward pass begins."""

    def layer_done(self, layer, last):
        """Backward has left a layer. last: of the last micro-step of a step."""
        if last:
            self._send(self._layers[layer])

    def all_done(self, last):
        """Backward is done: what the compute stream is asked from here on finds this process's gradients summed, if it was the last."""
        if last:
            self._send(self._rest)
            self._group.end()

    def _array(self, segment):
        return self._memory["grads"][segment.start : segment.stop]

    def _send(self, segments):
        if self._group.ranks == 1:
            return
        self._group.begin()
        if self._stage == 0:
            self._group.all_reduce([self._array(segment) for segment in segments])
        else:
            self._group.reduce_scatter([(self._array(segment), self._shards.bounds_within(segment)) for segment in segments])


class ShardedGradients(Gradients):
    """Stage 2: of the sums, only this process's parts stay in memory; the gradients of a layer are made in a buffer.

    memory: `grads` flat, this process's parts, `layer_grads` (BUFFERS, numbers of a layer), `rest_grads` flat, the tensors that are not a layer's
    """

    def __init__(self, memory, shards, group, stage):
        self._places = {}  # segment -> (array, start)
        for layer in range(shards.config.L):
            self._lay_out(shards, memory["layer_grads"][layer % BUFFERS], lambda s, layer=layer: s.name not in ONCE and s.layer == layer)
        self._lay_out(shards, memory["rest_grads"], lambda s: s.name in ONCE)
        self._mine = {segment: (local, length) for local, _, length, segment in shards.parts()}
        super().__init__(memory, shards, group, stage)

    def _lay_out(self, shards, array, belongs):
        start = 0
        for segment in filter(belongs, shards.segments):
            self._places[segment] = array[start : start + segment.stop - segment.start]
            start += segment.stop - segment.start

    def _array(self, segment):
        return self._places[segment]

    def begin_backward(self):
        zero(self._memory["rest_grads"])
        for layer in range(max(0, len(self._layers) - 2), len(self._layers)):
            zero(self._buffer(layer))

    def layer_done(self, layer, last):
        if layer + 1 < len(self._layers):
            self._add_up(self._layers[layer + 1])
        self._send(self._layers[layer])
        if layer >= 2:
            zero(self._buffer(layer - 2))  # what the layer above this one has left there has just been added up

    def all_done(self, last):
        self._add_up(self._layers[0])
        self._send(self._rest)
        self._add_up(self._rest)

    def _buffer(self, layer):
        return self._memory["layer_grads"][layer % BUFFERS]

    def _add_up(self, segments):
        """What has come of the other processes, added to this one's parts."""
        self._group.end()
        for segment in segments:
            (local, length), bounds = self._mine[segment], self._shards.bounds_within(segment)
            if length:
                mine = self._memory["grads"][local : local + length].reshape((1, length))
                came = self._array(segment)[bounds[self._shards.rank] : bounds[self._shards.rank + 1]].reshape((1, length))
                residual_forward(mine, mine, came)


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
