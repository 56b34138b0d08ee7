"""A model that only evaluates: batches of any shape, as long as they have no more tokens than there is memory for."""

import numpy as np

from gpt2_numba.errors import UserError
from gpt2_numba.gpu.arena import free_gpu_bytes
from gpt2_numba.gpu.backend import real_gpu, to_device
from gpt2_numba.gpu.cublaslt import WORKSPACE_BYTES
from gpt2_numba.inference import ForwardModel, plan_forward_memory
from gpt2_numba.memory_fit import free_host_bytes

TOKENS_ON_GPU = 32_768  # of a batch: more are hardly faster
LOGITS_ON_CPU = 1 << 26  # numbers, 256 MiB: of a batch with GPT-2's vocabulary 1,334 tokens
TOKENS_ON_CPU = 16_384


class EvaluationModel(ForwardModel):
    """A ForwardModel with the losses of targets.

    config   GPT2Config        T  longest row of a batch, at most config.max_T
    options  Options           tokens  of a batch; None: as many as are fast, or fit
    `batch_tokens` are the tokens that a batch may have. Raises UserError if memory is too small. Parameters are undefined until loaded.
    """

    def __init__(self, config, T, options, tokens=None):
        rows = max(1, tokens // T) if tokens else _largest_fast_batch(config, T, options)
        _check_memory(config, T, options, rows)
        super().__init__(config, 1, T, options, rows)
        self.batch_tokens = rows * T
        mean_loss = np.zeros(1, np.float32)  # which GPT2.evaluate adds to
        self.memory["mean_loss"] = to_device(mean_loss) if options.device == "gpu" else mean_loss
        self._losses_gathered = 0


def _largest_fast_batch(config, T, options):
    """Rows of T tokens that are enough to be fast, or fewer if memory is small; at least 1."""
    tokens = TOKENS_ON_GPU if options.device == "gpu" else min(TOKENS_ON_CPU, LOGITS_ON_CPU // config.Vp)
    rows = max(1, tokens // T)
    while rows > 1 and _bytes_needed(config, T, options, rows) > _free_bytes(options):
        rows //= 2
    return rows


def _check_memory(config, T, options, rows):
    needed, free = _bytes_needed(config, T, options, rows), _free_bytes(options)
    if needed > free:
        raise UserError(
            f"too little {'GPU ' if options.device == 'gpu' else ''}memory: evaluating {config} in {options.precision} with batches of "
            f"{rows * T:,} tokens needs {needed / 2**30:.2f} GiB, but {free / 2**30:.2f} GiB are free: use a smaller -b or -t"
            f"{' or --precision bf16' if options.device == 'gpu' and options.precision == 'fp32' else ''}"
        )


def _bytes_needed(config, T, options, rows):
    on_real_gpu = options.device == "gpu" and real_gpu()
    return plan_forward_memory(config, 1, T, options, rows).nbytes + on_real_gpu * WORKSPACE_BYTES


def _free_bytes(options):
    return free_gpu_bytes() if options.device == "gpu" and real_gpu() else free_host_bytes()
