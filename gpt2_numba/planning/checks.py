"""What of a run does not fit together: schedule, batch, data, memory, disk. Each check returns one line, or None.

PROBLEMS keep the run from starting or finishing; WARNINGS are what its author probably did not mean.
"""

from gpt2_numba.config import count_parameters
from gpt2_numba.layers.fast.attention import FASTER_BY_CUDNN, cudnn
from gpt2_numba.planning.memory import capacity_gib, fits, memory_gib

MOST_EPOCHS = 4  # up to here repeated data are nearly as good as new ones: Muennighoff et al. 2023 (arXiv:2305.16264)
CHINCHILLA = 20  # tokens a parameter: Hoffmann et al. 2022 (arXiv:2203.15556)
FAR_OFF = 10  # times more or fewer
LONG_RUN = 1.0  # hours
MOST_ADDED = 128  # gradients that bfloat16 adds up to a few percent, however alike they are: docs/numbers.md
CARDS_WITH_CUDNN = "h100", "h100-pcie", "h200", "gh200"  # where --attention auto takes cuDNN for FASTER_BY_CUDNN


def problems(plan):
    """Lines about what keeps the run from starting or finishing."""
    return _lines(plan, (context, divisibility, memory, too_few_tokens, disk))


def warnings(plan, hours=None):
    """Lines about what is probably not meant. hours: of the run, None if unknown."""
    return _lines(plan, (warm_up, no_decay, epochs, chinchilla, many_micro_steps, cudnn_scratch)) + [
        line for line in (no_checkpoints(plan, hours),) if line
    ]


def _lines(plan, checks):
    return [line for check in checks if (line := check(plan))]


def context(plan):
    """Sequences longer than the model's context."""
    if plan.T > plan.config.max_T:
        return f"sequences of {plan.T} tokens (-t) are longer than the model's longest context, {plan.config.max_T}"


def divisibility(plan):
    """A step that is no whole number of micro-steps."""
    unit = plan.B * plan.T * plan.gpus
    if not plan.is_divisible:
        nearest = max(1, round(plan.tokens_per_step / unit)) * unit
        return (
            f"a step of {plan.tokens_per_step:,} tokens (-d) is no multiple of B * T * GPUs = {plan.B} * {plan.T} * {plan.gpus} = {unit:,}: "
            f"the nearest is {nearest}"
        )


def memory(plan):
    """More memory than a GPU has."""
    if not fits(plan):
        return f"{memory_gib(plan):.1f} GiB are needed, {capacity_gib(plan):.1f} GiB are there: see the guide above"


def too_few_tokens(plan):
    """Data smaller than one micro-step."""
    batch = plan.B * plan.T * plan.gpus
    if plan.data_tokens is not None and plan.data_tokens <= batch:
        return f"the data have {plan.data_tokens:,} tokens, and one micro-step of all GPUs takes {batch + 1:,}"


def disk(plan):
    """Checkpoints that do not fit on the disk."""
    needed = checkpoints_gb(plan)
    if plan.disk_gb is not None and needed > plan.disk_gb:
        advice = "" if plan.settings.keep_checkpoints else ": keep fewer (-nk 3)"
        return f"the checkpoints take up to {needed:,.1f} GB, and {plan.disk_gb:,.1f} GB are free{advice}"


def warm_up(plan):
    """A warm-up that is ignored, or never ends."""
    given, settings = plan.given.warmup_steps, plan.settings
    if not given:
        return None
    if settings.schedule == "constant":
        return "the constant schedule (-k) has no warm-up: -u is ignored"
    if given >= plan.steps:
        return f"the warm-up (-u {given}) is as long as the run of {plan.steps} steps, or longer: the peak of the learning rate is never reached"


def no_decay(plan):
    """A schedule whose learning rate never falls."""
    settings = plan.settings
    is_command = plan.given.train_data is not None
    if is_command and settings.schedule != "constant" and settings.final_lr_fraction == 1:
        return f"the learning rate never falls: -q is 1, so the {settings.schedule} schedule ends at its peak; usual is -q 0.1 or 0"


def epochs(plan):
    """Data that are read too often."""
    if plan.data_tokens and plan.tokens > MOST_EPOCHS * plan.data_tokens:
        passes = plan.tokens / plan.data_tokens
        return f"the data are read {passes:.1f} times, and after {MOST_EPOCHS} passes repeated tokens teach little"


def many_micro_steps(plan):
    """Gradients of very many micro-steps in bfloat16."""
    count = plan.tokens_per_step // (plan.B * plan.T * plan.gpus)
    if plan.options.precision == "bf16" and count > MOST_ADDED:
        return f"the gradients of {count} micro-steps are added up in bfloat16, whose rounding then shows: use a larger -b"


def chinchilla(plan):
    """Far too few or too many tokens for the model's size."""
    ratio = plan.tokens / count_parameters(plan.config)
    if ratio < CHINCHILLA / FAR_OFF:
        return (
            f"{ratio:.2g} tokens a parameter, far below {CHINCHILLA} (Chinchilla): a smaller model gets a lower loss from the same compute"
        )
    if ratio > CHINCHILLA * FAR_OFF:
        return (
            f"{ratio:,.0f} tokens a parameter, far above {CHINCHILLA} (Chinchilla): a larger model gets a lower loss from the same compute"
        )


def cudnn_scratch(plan):
    """With cuDNN's attention the arena is larger; the plan is without."""
    HS, setting = plan.config.HS, plan.settings.attention
    by_default = setting == "auto" and HS in FASTER_BY_CUDNN and plan.card in CARDS_WITH_CUDNN
    if plan.options.precision == "bf16" and (setting == "cudnn" or by_default):
        more = 4 * cudnn.scratch_size(plan.B, plan.T, plan.config.NH, HS) / 2**30
        return f"planned without cuDNN: where it is installed, attention takes up to {more:.2f} GiB more, and less time"


def no_checkpoints(plan, hours):
    """A long run that saves nothing on the way."""
    if hours and hours > LONG_RUN and not plan.settings.checkpoint_every and plan.given.train_data is not None:
        return f"no checkpoint is written in {hours:.1f} hours: add -n STEPS -nk 3 (and -o)"


def checkpoint_gb(plan):
    """GB of one checkpoint: the parameters as stored, AdamW's m and v, and master weights if kept, in float32."""
    element = 4 if plan.options.precision == "fp32" else 2
    arrays = 3 if plan.options.precision == "bf16" and plan.options.master_weights else 2
    return count_parameters(plan.config) * (element + 4 * arrays) / 1e9


def checkpoints_gb(plan):
    """GB of all checkpoints that are on the disk at once: those kept, and the one being written."""
    settings = plan.settings
    if not settings.log_dir and plan.disk_gb is None:
        return 0.0
    every, kept, major = settings.checkpoint_every, settings.keep_checkpoints, settings.major_checkpoint_every
    written = plan.steps // every if every else 0
    written += bool(settings.final_checkpoint and not (every and plan.steps % every == 0))
    at_once = min(written, kept + 1 + (plan.steps // major if major else 0)) if kept else written
    return at_once * checkpoint_gb(plan)
