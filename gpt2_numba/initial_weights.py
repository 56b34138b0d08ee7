"""Random initial weights: the stream of llm.c and PyTorch, a Mersenne Twister and the Box-Muller transform.

NumPy's RandomState gives the same raw 32-bit numbers as torch.manual_seed with the same seed. What is made of them follows
PyTorch's CPU normal_() for 16 and more values: blocks of 16 uniforms become 16 normals, the first eight giving the radius and the
last eight the angle. If the count is not a multiple of 16, the last 16 are drawn again.
"""

import math

import numpy as np

STD = 0.02
CHUNK = 1 << 20  # normals made at a time; a multiple of 16. Keeps the temporaries at a few MiB.

# The tensors that are drawn, in the order in which llm.c draws them for each layer; the residual branches' ends are scaled down.
_PER_LAYER = ("qkvw", "attprojw", "fcw", "fcprojw")
_BRANCH_ENDS = ("attprojw", "fcprojw")


class NormalStream:
    """Normal random numbers, float32, as torch.Tensor.normal_ draws them on a CPU."""

    def __init__(self, seed):
        self._generator = np.random.RandomState(seed)

    def _uniform(self, n):
        bits = self._generator.randint(0, 1 << 32, size=n, dtype=np.uint32)
        return (bits & np.uint32((1 << 24) - 1)).astype(np.float32) * np.float32(2.0**-24)

    def fill(self, out, std):
        """Fill the flat float32 array `out` (16 values or more) with normals of mean 0 and standard deviation `std`."""
        n = len(out)
        if n < 16:
            raise ValueError(f"NormalStream.fill: needs 16 values or more, got {n}")
        tail = np.empty(0, np.float32)  # uniforms of the last, incomplete block: drawn, so that the stream moves on, then redrawn
        for start in range(0, n, CHUNK):
            piece = out[start : start + CHUNK]
            piece[:] = self._uniform(len(piece))
            whole = len(piece) // 16 * 16
            piece[:whole] = _box_muller(piece[:whole], std)
            tail = piece[whole:]
        if len(tail):
            out[-16:] = _box_muller(self._uniform(16), std)


def _box_muller(uniforms, std):
    blocks = uniforms.reshape(-1, 2, 8)
    u1, u2 = np.float32(1) - blocks[:, 0], blocks[:, 1]
    radius = np.sqrt(np.float32(-2) * np.log(u1 + np.float32(1e-12)))
    angle = np.float32(2 * math.pi) * u2
    normals = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return (normals * np.float32(std)).reshape(-1)


def initial_weights(config, shapes, seed=42):
    """Fresh parameters, GPT-2's way: N(0, 0.02) for weights, smaller at the residual branches' ends, 1 and 0 for LayerNorm, biases 0.

    config  GPT2Config    shapes  name -> shape, the parameter table of model.py    seed  of the generator
    Returns name -> float32 array.
    """
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for name in ("ln1w", "ln2w", "lnfw"):
        weights[name][:] = 1
    stream = NormalStream(seed)
    for layer in range(config.L):
        if layer == 0:
            stream.fill(weights["wte"][: config.V].reshape(-1), STD)
            stream.fill(weights["wpe"].reshape(-1), STD)
        for name in _PER_LAYER:
            std = STD / math.sqrt(2 * config.L) if name in _BRANCH_ENDS else STD
            stream.fill(weights[name][layer].reshape(-1), std)
    return weights
