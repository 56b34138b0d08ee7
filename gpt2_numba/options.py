"""How a model is trained, apart from its sizes and its batch: the options that GPT2 and the memory plan share."""

from dataclasses import dataclass
from functools import cached_property

from gpt2_numba.errors import UserError
from gpt2_numba.kernel_sets import KernelSet, choose_kernels


@dataclass(frozen=True)
class Options:
    """Options of a GPT2. Raises UserError where they do not go together.

    device          "cpu" (the NumPy references) or "gpu" (kernels, on a GPU or in the simulator)
    precision       "fp32", or "bf16" on a GPU: parameters, gradients and activations in bfloat16, sums in float32
    recompute       what backward computes again instead of keeping it: 0 nothing, 1 the GELUs, 2 the LayerNorms as well
    master_weights  with bf16: AdamW keeps float32 copies of the parameters
    tf32            allow TF32 in float32 matrix products on a GPU; applies to the whole process
    gelu_fusion     0, or 1: cuBLASLt computes the GELU as part of the product before it, or 2: its backward too. Only on a real GPU
    graph           record the launches of a pass as a CUDA graph and replay it, on a real GPU; the bits are the same
    guards          guard every launch: the memory plan leaves red zones between the arrays (training/guarded_model.py)
    float8          with bf16: the products of the blocks' linear layers have factors of eight bits (layers/fast/float8.py)
    zero_stage      what several processes share out: 0 nothing, 1 the optimizer's state, 2 the gradients as well
    kernels         auto, fast, plain, or files with functions of your own (kernel_sets.choose_kernels); or a KernelSet
    """

    device: str = "cpu"
    precision: str = "fp32"
    recompute: int = 1
    master_weights: bool = True
    tf32: bool = True
    gelu_fusion: int = 0
    graph: bool = True
    guards: bool = False
    float8: bool = False
    zero_stage: int = 0
    kernels: str | KernelSet = "auto"

    def __post_init__(self):
        device, precision, recompute = self.device, self.precision, self.recompute
        if device not in ("cpu", "gpu") or precision not in ("fp32", "bf16") or recompute not in (0, 1, 2):
            raise UserError(f"device is cpu or gpu, precision fp32 or bf16, recompute 0, 1 or 2; got {device}, {precision}, {recompute}")
        if device == "cpu" and precision == "bf16":
            raise UserError("bf16 needs a GPU: NumPy has no bfloat16. Use --precision fp32")

    @cached_property
    def kernel_set(self):
        """The KernelSet that `kernels` asks for. Raises UserError if this machine or precision cannot run it."""
        return choose_kernels(self.kernels, self.device, self.precision) if isinstance(self.kernels, str) else self.kernels
