"""Train GPT-2:  python -m gpt2_numba.train  (--help lists the flags).

Without flags: a small model on text that every Python carries, on the GPU if there is one, else on the CPU.
"""

import sys
import time
from dataclasses import fields, replace

import numpy as np

from gpt2_numba.config import parse_descriptor
from gpt2_numba.data.builtin_corpus import builtin_corpus
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.data.token_shards import find_shards
from gpt2_numba.data.tokenizers import BYTE_VOCAB_SIZE, GPT2_VOCAB_SIZE, encoding_for_vocab
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import bfloat16_supported, device_name, real_gpu
from gpt2_numba.initial_weights import draw_initial_weights
from gpt2_numba.model import GPT2, count_parameters, parameter_shapes
from gpt2_numba.plot import plot_losses
from gpt2_numba.training.log import MainLog, Throughput, step_line
from gpt2_numba.training.outliers import OutlierDetector
from gpt2_numba.training.sampler import Xorshift64Star, sample_from_logits
from gpt2_numba.training.schedules import learning_rate
from gpt2_numba.training.settings import parse_settings, with_defaults
from gpt2_numba.training.speed import flops_per_token, peak_flops

GRAD_CLIP = 1.0  # largest norm of all gradients together
SAMPLING_SEED = 1337
SMALLEST_SAMPLING_CONTEXT = 32  # a forward pass for sampling has 32, 64, 128, ... tokens: few shapes, little waste


def train(settings):
    """Run one training from start to end. settings: Settings with defaults filled in. Returns the trained GPT2."""
    config, encoding = choose_model(settings)
    train_loader, val_loader = make_loaders(settings, config)
    B, T = settings.batch_size, settings.sequence_length
    grad_accum_steps = accumulation_steps(settings)
    tokens_per_step = B * T * grad_accum_steps
    max_steps = settings.max_steps if settings.max_steps > 0 else max(1, train_loader.num_tokens // tokens_per_step)

    model = GPT2(
        config, B, T, settings.device, settings.precision, settings.recompute, settings.master_weights, settings.tf32
    )
    print_overview(settings, config, model, train_loader, val_loader, max_steps, grad_accum_steps)
    model.load_pieces(draw_initial_weights(config, parameter_shapes(config), settings.seed))

    log = MainLog(settings.log_dir)
    loss_outliers, norm_outliers = OutlierDetector(), OutlierDetector()
    throughput = Throughput(tokens_per_step)
    peak = peak_flops(device_name()) if settings.device == "gpu" else None
    flops_per_step = tokens_per_step * flops_per_token(count_parameters(config), config.L, config.C, T)

    step = 0
    while True:
        last = step == max_steps

        # Once in a while: how good is the model on text that it has not seen?
        if settings.val_every and (step % settings.val_every == 0 or last):
            val_loss = validate(model, val_loader, settings.val_batches)
            print(f"val loss {val_loss:.6f}")
            log.write_validation(step, val_loss)

        # Once in a while: what does it write?
        if settings.sample_every and (step > 0 and step % settings.sample_every == 0 or last):
            print(f"generating:\n---\n{sample(model, encoding, settings.sample_tokens)}\n---")

        if last:
            break

        # One step: gradients of all micro-batches, then the update.
        start = time.perf_counter()
        model.zero_grad()
        if settings.overfit_one_batch:
            train_loader.reset()
        for _ in range(grad_accum_steps):
            inputs, targets = train_loader.next_batch()
            model.forward(inputs)
            model.backward(targets, grad_accum_steps)
        loss, norm = model.take_loss(), model.grad_norm()
        loss_z, norm_z = loss_outliers.update(loss), norm_outliers.update(norm)
        rate = learning_rate(
            settings.schedule, step, max_steps, settings.learning_rate, settings.warmup_steps, settings.final_lr_fraction
        )
        if is_outlier(loss_z, settings.skip_loss_z) or is_outlier(norm_z, settings.skip_norm_z):
            print(f"skipping the update: z-score of the loss {loss_z:.2f}, of the norm {norm_z:.2f}")
        else:
            clip = GRAD_CLIP / norm if norm > GRAD_CLIP else 1.0
            model.update(step, rate, settings.weight_decay, grad_scale=clip)
        model.synchronize()
        seconds = time.perf_counter() - start

        tokens_per_second = throughput.update(seconds)
        mfu = flops_per_step / seconds / peak if peak else None
        seconds_left = throughput.seconds_left(max_steps - step - 1)
        print(step_line(step, max_steps, loss, loss_z, norm, norm_z, rate, seconds, mfu, tokens_per_second, seconds_left))
        log.write_train_step(step, loss, rate, norm)
        step += 1

    if log.path:
        picture = log.path.with_name("loss.png")
        plot_losses(log.path, picture, f"{config}, {count_parameters(config) / 1e6:.1f} M parameters")
        print(f"wrote {log.path} and {picture}")
    return model


# ------------------------------------------------------------------------------------------------- parts of the loop


def validate(model, loader, batches):
    """Mean loss (nats per token) over the first `batches` batches of the validation data."""
    loader.reset()
    for _ in range(batches):
        model.evaluate(*loader.next_batch())
    return model.take_loss()


def sample(model, encoding, count):
    """Text of `count` tokens that the model writes after end-of-text, always from the same random numbers.

    Every token costs one forward pass over the context, whose logits at the last place give the next token's probabilities.
    """
    coins = Xorshift64Star(SAMPLING_SEED)
    tokens = [model.config.V - 1]  # end-of-text is the last token of both tokenizers
    for _ in range(count):
        context = tokens[-model.T :]
        length = SMALLEST_SAMPLING_CONTEXT
        while length < len(context):
            length *= 2
        inputs = np.zeros((1, min(length, model.T)), np.int32)
        inputs[0, : len(context)] = context  # what stands behind is not seen: attention is causal
        model.forward(inputs)
        tokens.append(sample_from_logits(model.last_logits(len(context) - 1), coins.next_coin()))
    return " ".join(map(str, tokens[1:])) if encoding is None else encoding.decode(tokens[1:])


def is_outlier(z, threshold):
    """True if the z-score is known and above the threshold; a threshold of 0 is off."""
    return threshold != 0 and np.isfinite(z) and z > threshold


# ------------------------------------------------------------------------------------------------------ preparation


def choose_machine(settings):
    """Settings with device and precision decided: what "auto" means on this machine."""
    device = settings.device if settings.device not in (None, "auto") else ("gpu" if real_gpu() else "cpu")
    settings = with_defaults(settings, device)
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if device == "gpu" and bfloat16_supported() else "fp32"
    if precision == "bf16" and device == "gpu" and real_gpu() and not bfloat16_supported():
        raise UserError(f"bf16 needs a GPU of compute capability 8.0 or later, {device_name()} has less: use --precision fp32")
    return replace(settings, device=device, precision=precision)


def choose_model(settings):
    """The GPT2Config that the settings ask for, and its tokenizer (None if V is neither tokenizer's)."""
    default_V = BYTE_VOCAB_SIZE if settings.train_data is None else GPT2_VOCAB_SIZE
    config = parse_descriptor(settings.model, default_T=settings.sequence_length, default_V=default_V)
    if settings.sequence_length > config.max_T:
        raise UserError(
            f"the sequence length (-t) must be at most the model's longest context, {config.max_T}, got {settings.sequence_length}"
        )
    if not settings.sample_every:
        return config, None
    try:
        return config, encoding_for_vocab(config.V)
    except UserError as error:
        print(f"samples will be token numbers: {error}")
        return config, None


def make_loaders(settings, config):
    """Loaders for training and validation data: token shards, or the built-in corpus."""
    if settings.train_data is None:
        train_shards, val_shards = ([tokens] for tokens in builtin_corpus())
    else:
        train_shards, val_shards = find_shards(settings.train_data), find_shards(settings.val_data)
    sizes = {"B": settings.batch_size, "T": settings.sequence_length, "vocab_size": config.V}
    val_loader = DataLoader(val_shards, **sizes)
    if settings.overfit_one_batch:
        return DataLoader(val_shards, **sizes), val_loader
    return DataLoader(train_shards, **sizes, shuffle=True), val_loader


def accumulation_steps(settings):
    """How many micro-batches make a step."""
    micro_batch = settings.batch_size * settings.sequence_length
    total = settings.total_batch_tokens or micro_batch
    if total % micro_batch:
        nearest = max(1, round(total / micro_batch)) * micro_batch
        raise UserError(
            f"the tokens of a step (-d) must be a multiple of B * T = {settings.batch_size} * {settings.sequence_length} = {micro_batch}, "
            f"got {total}: {nearest} is the nearest"
        )
    return total // micro_batch


def print_overview(settings, config, model, train_loader, val_loader, max_steps, grad_accum_steps):
    """The settings, the sizes and the memory of the run, before it starts."""
    machine = device_name() if settings.device == "gpu" else "CPU, by NumPy"
    rows = [(field.name.replace("_", " "), getattr(settings, field.name)) for field in fields(settings)]
    rows += [
        ("machine", machine),
        ("model sizes", config),
        ("parameters", f"{count_parameters(config):,}"),
        ("training tokens", f"{train_loader.num_tokens:,}"),
        ("validation tokens", f"{val_loader.num_tokens:,}"),
        ("steps", max_steps),
        ("micro-steps a step", grad_accum_steps),
    ]
    for name, value in rows:
        print(f"| {name:<22} | {'' if value is None else value!s:<56} |")
    print(f"memory, allocated once:\n{model.arena.table()}")


def main(argv):
    """The command line. Returns the exit code: 0, or 2 for a mistake of the user's, told in one line."""
    try:
        train(choose_machine(parse_settings(argv)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
