"""Train GPT-2 in PyTorch: the measure for gpt2_numba.train, with its flags, its data in its order, its initial weights and its step line.

    python -m dev.oracle.train_torch -i 'data/*_train_*.bin' -j 'data/*_val_*.bin' -e d12 -b 64 -d 524288 -l 0.0006 -u 700
    torchrun --standalone --nproc-per-node 8 -m dev.oracle.train_torch ... -z 1

Forward, backward, clipping and the update are PyTorch's; of the package only the settings, the schedule, the data loader, the initial
weights and the log are used. It writes no checkpoints.

bf16 is autocast: parameters, gradients and AdamW's averages are float32, and each product rounds its inputs to bfloat16. That is what users
of PyTorch do, and nearest to our trainer, in which AdamW updates float32 copies of the bfloat16 parameters: updates smaller than the last
place of a bfloat16 add up, where bfloat16 parameters alone would lose them. The residual stream is bfloat16 too, as ours is; autocast by
itself leaves it in float32, which takes more memory and time.

Autocast rounds to nearest, our trainer stochastically, and so the two need different starts. A weight of 0.02 that is a bfloat16 number
stays the same to autocast until its updates add up to half a unit in the last place, 6e-5; with a warm-up of 700 steps to 6e-4, ten steps.
Weights that lie anywhere between two bfloat16 numbers cross the middle between them at the right rate. So new weights are float32, not
rounded; the first loss hardly changes, because autocast rounds them as our trainer does. A model file in bfloat16 has no digits to restore:
its first updates take effect late.

The rows of wte are padded to a multiple of 128, because a product of 50,257 columns is slow; the logits beyond V are cut off.
"""

import contextlib
import dataclasses
import math
import os
import resource
import sys
import time
from types import SimpleNamespace

import numpy as np

from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.config import ONCE, count_parameters, parameter_shapes, parse_descriptor
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.data.prefetch import Prefetcher
from gpt2_numba.data.token_shards import find_shards
from gpt2_numba.errors import UserError
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.parallel.group import only_first_prints
from gpt2_numba.training.log import MainLog, Throughput, step_line
from gpt2_numba.training.model_file import read_model_file
from gpt2_numba.training.outliers import OutlierDetector
from gpt2_numba.training.schedules import learning_rate
from gpt2_numba.training.settings import parse_settings, with_defaults
from gpt2_numba.training.speed import flops_per_token, peak_flops

try:
    import torch
    from torch import distributed

    from dev.oracle.torch_gpt2 import TorchGPT2
except ImportError:
    torch = None  # `run` says so in one line

GRAD_CLIP = 1.0
# The settings of gpt2_numba.train that mean the same here.
SHARED = (
    "train_data", "val_data", "model", "seed", "batch_size", "sequence_length", "total_batch_tokens", "max_steps", "schedule",
    "learning_rate", "warmup_steps", "final_lr_fraction", "weight_decay", "val_every", "val_batches", "log_dir", "device", "precision",
    "tf32", "peak_tflops", "zero_stage",
)  # fmt: skip
SHARED_FLAGS = "-i -j -e --seed -b -t -d -x -k -l -u -q -c -v -m -o --device --precision -f --peak-tflops -z"
# --flash -> which kernels scaled_dot_product_attention may use: FlashAttention, memory-efficient, cuDNN's, whole matrices
ATTENTION = {"1": (True, True, False, False), "0": (False, False, False, True), "cudnn": (False, False, True, False)}


# ------------------------------------------------------------------------------------------------------- command line


def parse(argv):
    """Parse the command line. Returns (Settings without defaults, the flags that only this program has)."""
    parser = Parser(
        prog="python -m dev.oracle.train_torch", doc=__doc__, allow_abbrev=False, usage="%(prog)s -i PATTERN -j PATTERN [FLAG VALUE]...",
        epilog=f"These flags are those of python -m gpt2_numba.train, which explains them: {SHARED_FLAGS}",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=("auto", "fp32", "bf16"), help="the same as --precision; bf16 is autocast (default auto)")
    parser.add_argument(
        "--compile",
        choices=("0", "1", "blocks"),
        default="0",
        help="torch.compile: 1 the whole model, blocks one block, which serves for all of them: compiled in a fraction of the time, and "
        "with several processes gradients are sent while earlier blocks are still being computed (default 0)",
    )
    parser.add_argument(
        "--flash",
        choices=tuple(ATTENTION),
        default="1",
        help="attention: 1 PyTorch's own FlashAttention (in fp32 on a GPU its memory-efficient kernel), cudnn cuDNN's, 0 whole matrices",
    )
    parser.add_argument("--zero", choices=("0", "1"), help="the same as -z: 1 = ZeroRedundancyOptimizer shards AdamW's averages")
    parser.add_argument(
        "--rows-at-once",
        type=int,
        metavar="R",
        help="rows of a forward pass, where the B rows of a micro-batch do not fit into memory: the order of the data remains that of B",
    )
    own, others = parser.parse_known_args(argv)
    settings = parse_settings(others)
    aliases = {"precision": own.dtype, "zero_stage": own.zero and int(own.zero)}
    settings = dataclasses.replace(settings, **{name: value for name, value in aliases.items() if value is not None})
    foreign = [name for name, value in dataclasses.asdict(settings).items() if value is not None and name not in SHARED]
    if foreign:
        raise UserError(
            f"of gpt2_numba.train's flags this program knows {SHARED_FLAGS}, got --{foreign[0].replace('_', '-')}: leave it out"
        )
    return settings, own


def complete(settings, own):
    """Settings with everything decided that the command line left open. Raises UserError for what is not possible here."""
    device = settings.device if settings.device not in (None, "auto") else ("gpu" if torch.cuda.is_available() else "cpu")
    if device == "gpu" and not torch.cuda.is_available():
        raise UserError("--device gpu needs a GPU that PyTorch can use, and there is none: use --device cpu, or install PyTorch with CUDA")
    if settings.train_data is None:
        raise UserError("the token shards must be given, -i for training and -j for validation: python -m gpt2_numba.data makes some")
    settings = dataclasses.replace(with_defaults(settings, device), device=device)
    if settings.precision == "auto":
        settings = dataclasses.replace(settings, precision="bf16" if device == "gpu" and torch.cuda.is_bf16_supported() else "fp32")
    if settings.batch_size == "auto":
        raise UserError("-b must be a number here: PyTorch's memory is known only when it has run")
    if settings.zero_stage > 1:
        raise UserError(f"-z must be 0 or 1 here, got {settings.zero_stage}: PyTorch's ZeroRedundancyOptimizer is stage 1")
    if own.flash == "cudnn" and (device == "cpu" or settings.precision == "fp32"):
        raise UserError("--flash cudnn needs a GPU and bf16: use --flash 1")
    rows = own.rows_at_once
    if rows is not None and (rows < 1 or settings.batch_size % rows):
        raise UserError(f"--rows-at-once must divide the rows of a micro-batch, -b {settings.batch_size}, got {rows}")
    return settings


# ---------------------------------------------------------------------------------------- processes, times, results


def join(device):
    """This process among those that torchrun has started: rank, ranks and its torch device."""
    rank, ranks, local = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    where = torch.device("cuda", local) if device == "gpu" else torch.device("cpu")
    if device == "gpu":
        torch.cuda.set_device(where)
    if ranks > 1:
        distributed.init_process_group("nccl" if device == "gpu" else "gloo")
    return SimpleNamespace(rank=rank, ranks=ranks, device=where)


class Moment:
    """The moment when the device finishes what has been queued so far. Creating one does not wait."""

    def __init__(self, device):
        self._seconds, self._event = time.perf_counter(), None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()

    def seconds_since(self, earlier):
        """Seconds from an earlier moment to this one. Waits until the device has reached this one."""
        if self._event is None:
            return self._seconds - earlier._seconds
        self._event.synchronize()
        return earlier._event.elapsed_time(self._event) / 1e3


class Reports:
    """Prints and logs the steps; on a GPU each one when the next is queued, so that the GPU never waits for the host."""

    def __init__(self, settings, world, max_steps, tokens_per_step, peak):
        """peak: tokens a second of all chips at their bf16 peak, or None."""
        self._max_steps, self._tokens_per_step, self._peak, self._device = max_steps, tokens_per_step, peak, world.device
        self._log = MainLog(settings.log_dir if world.rank == 0 else None)
        self._throughput, self._losses, self._norms = Throughput(tokens_per_step), OutlierDetector(), OutlierDetector()
        self._begin = self._waiting = None

    def begin(self):
        """Call at the start of a step."""
        if self._waiting is None:
            self._begin = Moment(self._device)

    def add(self, step, rate, loss, norm):
        """Call when a step is queued. loss, norm: scalar tensors, which are copied without waiting."""
        results = torch.stack((loss, norm)).float()
        on_host = torch.empty(2, pin_memory=self._device.type == "cuda")
        on_host.copy_(results, non_blocking=True)
        self.finish()
        self._waiting = step, rate, on_host, Moment(self._device)
        if self._device.type == "cpu":
            self.finish()

    def finish(self):
        """Report the last step, waiting for it."""
        if self._waiting is None:
            return
        (step, rate, on_host, end), self._waiting = self._waiting, None
        seconds, self._begin = end.seconds_since(self._begin), end
        loss, norm = on_host.tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(f"the run has diverged: in step {step + 1} the loss is {loss}, the gradient norm {norm}. Lower the rate (-l)")
        tokens_per_second = self._throughput.update(seconds)
        line = step_line(
            step=step, max_steps=self._max_steps, loss=loss, loss_z=self._losses.update(loss), norm=norm, norm_z=self._norms.update(norm),
            learning_rate=rate, step_seconds=seconds, mfu=self._peak and self._tokens_per_step / seconds / self._peak,
            tokens_per_second=tokens_per_second, seconds_left=self._throughput.seconds_left(self._max_steps - step - 1),
        )  # fmt: skip
        print(line, flush=True)
        self._log.write_train_step(step, loss, rate, norm)

    def validation(self, step, loss):
        print(f"val loss {loss:.6f}")
        self._log.write_validation(step, loss)


# ------------------------------------------------------------------------------------------------ model and optimizer


def start_weights(settings):
    """(GPT2Config, the pieces for TorchGPT2.load_pieces) of a new model, not rounded, or of a model file (-e FILE.bin)."""
    if settings.model.endswith(".bin"):
        config, flat = read_model_file(settings.model)
        return config, pieces_of(config, flat)
    config = parse_descriptor(settings.model, default_T=settings.sequence_length)
    return config, draw_initial_weights(config, parameter_shapes(config), settings.seed)


def pieces_of(config, flat):
    """The parameters of a model file, tensor by tensor and block by block, as float32 arrays. flat: as read_model_file returns it."""
    start = 0
    for name, shape in parameter_shapes(config).items():
        for layer in range(1 if name in ONCE else config.L):
            one = shape if name in ONCE else shape[1:]
            values = np.array(flat[start : start + math.prod(one)])
            if values.dtype == np.uint16:  # the bits of bfloat16: the upper half of a float32's
                values = (values.astype(np.uint32) << 16).view(np.float32)
            yield name, layer, values.reshape(one)
            start += math.prod(one)


def make_model(settings, own, config, pieces, device):
    """The TorchGPT2 of the run on its device, compiled as --compile says."""
    with torch.device("meta"):  # no memory, and no random numbers that the weights would replace
        model = TorchGPT2(
            config.L, config.NH, config.C, config.max_T, config.V,
            wte_rows=config.Vp, residual_dtype=torch.bfloat16 if settings.precision == "bf16" else None,
        )  # fmt: skip
    model.to_empty(device=device)
    model.load_pieces(pieces)
    flash, memory_efficient, cudnn, matrices = ATTENTION[own.flash]
    torch.backends.cuda.enable_flash_sdp(flash)
    torch.backends.cuda.enable_mem_efficient_sdp(memory_efficient)
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.backends.cuda.enable_math_sdp(matrices)
    if own.compile == "1":
        model.compile(dynamic=False)
    if own.compile == "blocks":
        for block in model.blocks:
            block.compile(dynamic=False)
        model.cross_entropy = torch.compile(model.cross_entropy, dynamic=False)
    return model


def make_optimizer(settings, model, ranks):
    """AdamW with GPT-2's constants, fused into few kernels; with -z 1 each process keeps the averages of a part of the parameters.

    Matrices and embeddings decay, biases and LayerNorms do not.
    """
    groups = [
        {"params": [parameter for parameter in model.parameters() if parameter.ndim == 2], "weight_decay": settings.weight_decay},
        {"params": [parameter for parameter in model.parameters() if parameter.ndim == 1], "weight_decay": 0.0},
    ]
    constants = {"lr": settings.learning_rate, "betas": (0.9, 0.95), "eps": 1e-8, "fused": True}
    if settings.zero_stage == 1 and ranks > 1:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return ZeroRedundancyOptimizer(groups, torch.optim.AdamW, **constants)
    return torch.optim.AdamW(groups, **constants)


# ----------------------------------------------------------------------------------------------------------- training


def train(settings, own, world):
    """Train from start to end. settings: complete; own: the flags of this program only; world: from join."""
    device, bf16 = world.device, settings.precision == "bf16"
    config, pieces = start_weights(settings)  # new ones are drawn in the background
    if settings.sequence_length > config.max_T:
        raise UserError(f"-t must be at most the model's longest context, {config.max_T}, got {settings.sequence_length}")
    B, T, V = settings.batch_size, settings.sequence_length, config.V
    accum_steps, left_over = divmod(settings.total_batch_tokens or B * T * world.ranks, B * T * world.ranks)
    if left_over or not accum_steps:
        raise UserError(f"-d must be a multiple of B * T * processes = {B * T * world.ranks}, got {settings.total_batch_tokens}")
    loader = DataLoader(find_shards(settings.train_data), B, T, rank=world.rank, ranks=world.ranks, shuffle=True, vocab_size=V)
    val_loader = DataLoader(find_shards(settings.val_data), B, T, vocab_size=V)
    tokens_per_step = B * T * accum_steps * world.ranks
    max_steps = settings.max_steps if settings.max_steps > 0 else max(1, loader.num_tokens // tokens_per_step)

    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")  # "high" is TF32
    model = make_model(settings, own, config, pieces, device)
    whole = model if world.ranks == 1 else torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = make_optimizer(settings, model, world.ranks)
    print_overview(settings, own, config, world, accum_steps)
    reports = Reports(settings, world, max_steps, tokens_per_step, peak_tokens_per_second(settings, config, world))

    def on_device(batch):
        """A batch of our loader, int32 (B, T) twice, as tensors of at most --rows-at-once rows."""
        tensors = [torch.from_numpy(array) for array in batch]
        if device.type == "cuda":
            tensors = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
        return list(zip(*(tensor.long().split(own.rows_at_once or B) for tensor in tensors)))

    def loss_of(module, inputs, targets):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return module(inputs, targets)

    with Prefetcher(loader) as batches:
        for step in range(max_steps + 1):
            last = step == max_steps

            # Once in a while, at the start and at the end: how well does the model predict text it has not seen?
            if settings.val_every and (last or step % settings.val_every == 0):
                reports.finish()
                reports.validation(
                    step, validate(lambda *batch: loss_of(model, *batch), val_loader, settings.val_batches, on_device, world)
                )
            if last:
                break

            # One step: the gradients of all micro-batches, then the update.
            reports.begin()
            optimizer.zero_grad(set_to_none=True)
            loss_sum = torch.zeros((), device=device)
            for micro_step in range(accum_steps):
                parts = on_device(batches.next_batch())
                for index, (inputs, targets) in enumerate(parts):
                    # Processes add up their gradients after the last part of a step only.
                    step_is_over = micro_step + 1 == accum_steps and index + 1 == len(parts)
                    with contextlib.nullcontext() if whole is model or step_is_over else whole.no_sync():
                        loss = loss_of(whole, inputs, targets) / (accum_steps * len(parts))
                        loss.backward()
                    loss_sum += loss.detach()
            if world.ranks > 1:
                distributed.all_reduce(loss_sum)
                loss_sum /= world.ranks
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
            rate = learning_rate(
                settings.schedule, step, max_steps,
                peak=settings.learning_rate, warmup_steps=settings.warmup_steps, final_fraction=settings.final_lr_fraction,
            )  # fmt: skip
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            reports.add(step, rate, loss_sum, norm)
    reports.finish()
    print(f"memory: {memory(device)}")


def validate(loss_of, loader, batches, on_device, world):
    """Mean loss (nats per token) over the first `batches` batches of the validation data, divided among the processes."""
    loader.reset()
    total = torch.zeros((), device=world.device)
    with torch.no_grad():
        for index in range(batches):
            if index % world.ranks != world.rank:
                loader.skip()
                continue
            parts = on_device(loader.next_batch())
            total += sum(loss_of(inputs, targets) for inputs, targets in parts) / len(parts)
    if world.ranks > 1:
        distributed.all_reduce(total)
    return total.item() / batches


def peak_tokens_per_second(settings, config, world):
    """Tokens/s of all chips together at their dense bf16 peak, as in our trainer; None if that is unknown."""
    peak = settings.peak_tflops and settings.peak_tflops * 1e12
    if not peak and world.device.type == "cuda":
        chip = torch.cuda.get_device_properties(world.device)
        clock_hz = 1e3 * getattr(chip, "clock_rate", 0)  # not in every version
        peak = peak_flops(chip.name, (chip.major, chip.minor), chip.multi_processor_count, clock_hz)
    return world.ranks * peak / flops_per_token(count_parameters(config), config.L, config.C, settings.sequence_length) if peak else None


def memory(device):
    """The most memory used so far, as text."""
    if device.type == "cpu":
        return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB resident at most"
    allocated, reserved = torch.cuda.max_memory_allocated(device) / 2**20, torch.cuda.max_memory_reserved(device) / 2**20
    return f"{allocated:,.0f} MiB allocated at most, {reserved:,.0f} MiB reserved"


def print_overview(settings, own, config, world, accum_steps):
    """Print the settings and sizes of the run before it starts."""
    rows = [(name.replace("_", " "), getattr(settings, name)) for name in SHARED]
    rows += [(name.replace("_", " "), value) for name, value in vars(own).items() if name not in ("dtype", "zero")]
    machine = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    rows += [
        ("machine", machine), ("PyTorch", torch.__version__), ("model sizes", config), ("parameters", f"{count_parameters(config):,}"),
        ("processes", world.ranks), ("micro-steps per step", accum_steps),
    ]  # fmt: skip
    for name, value in rows:
        print(f"| {name:<22} | {'' if value is None else value!s:<56} |")
    sys.stdout.flush()


def run(argv):
    """Train as the command line asks."""
    settings, own = parse(argv)
    if torch is None:
        raise UserError("this trainer needs PyTorch, which is not installed: pip install -e '.[oracle]'")
    settings = complete(settings, own)
    world = join(settings.device)
    try:
        with only_first_prints(world):
            train(settings, own, world)
    finally:
        if world.ranks > 1:
            distributed.destroy_process_group()


def main(argv):
    """The command line. Returns the exit code: 2 for a user's mistake, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
