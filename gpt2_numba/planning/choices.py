"""From what was asked for to a complete Plan: what was not given is the trainer's default (with -i) or chosen here (without)."""

import dataclasses
import fnmatch
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2_numba.config import GPT2_VOCAB_SIZE, GPT2Config, count_parameters, parse_descriptor
from gpt2_numba.data.disk_space import free_bytes
from gpt2_numba.data.manifest import MANIFEST, read_manifest
from gpt2_numba.data.token_shards import Shard, find_shards
from gpt2_numba.data.tokenizer_record import tokenizer_of_shards
from gpt2_numba.data.tokenizers import VOCAB_SIZES
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import device_name, real_gpu
from gpt2_numba.huggingface import huggingface_config, is_huggingface
from gpt2_numba.kernel_sets import KernelSet
from gpt2_numba.options import Options
from gpt2_numba.planning.cards import CARDS, card_of_device, find_card
from gpt2_numba.planning.checks import CHINCHILLA
from gpt2_numba.planning.collectives import Fabric, fabric
from gpt2_numba.planning.many_gpus import largest_divisor, step
from gpt2_numba.planning.memory import largest_micro_batch
from gpt2_numba.planning.predict import can_predict, predicted
from gpt2_numba.planning.request import launched
from gpt2_numba.training.model_file import read_model_file
from gpt2_numba.training.settings import SHARD_DEFAULTS, Settings, default_gelu_fusion, options_of

MOST_PARAMETERS = 10**15  # far beyond any memory, and their positions fit into int64
PUBLISHED = {"gpt2": "d12", "gpt2-medium": "d24", "gpt2-large": "d36", "gpt2-xl": "d48"}
# Tokens a step by parameters, from table 2.1 of the GPT-3 paper (arXiv:2005.14165), in powers of two.
TOTAL_BATCHES = ((5e8, 1 << 19), (5e9, 1 << 20), (math.inf, 1 << 21))


@dataclass(frozen=True)
class Plan:
    """A training, decided in all that the plan needs."""

    settings: Settings  # complete
    given: Settings  # as typed
    config: GPT2Config
    options: Options
    gpus: int
    card: str | None  # a key of CARDS; None on a CPU
    network: str
    tokens_per_step: int  # as asked for: it need not be a multiple of B * T * gpus
    steps: int
    data_tokens: int | None  # None if unknown
    price: float | None  # dollars per GPU-hour; None if unknown
    price_source: str
    disk_gb: float | None  # free for checkpoints; None without -o
    chosen: tuple  # what was not given and is not the trainer's default, as text

    @property
    def B(self):
        return self.settings.batch_size

    @property
    def T(self):
        return self.settings.sequence_length

    @property
    def tokens(self):
        """Of the whole run."""
        return self.steps * self.tokens_per_step

    @property
    def is_divisible(self):
        """Whether a step is a whole number of micro-steps on each GPU."""
        return self.tokens_per_step % (self.B * self.T * self.gpus) == 0

    def one_gpu(self, B=None, recompute=None):
        """The OneGpu of this run, or of another micro-batch or level of recomputing."""
        options = self.options if recompute is None else replace(self.options, recompute=recompute)
        return predicted(self.config, B or self.B, self.T, options, self.card)

    def step(self, gpu=None, gpus=None):
        """The modelled Step on this run's GPUs or another number of them. Raises ValueError if the batch cannot be divided."""
        return step(
            self.config, gpu or self.one_gpu(), ranks=gpus or self.gpus, tokens=self.tokens_per_step, stage=self.settings.zero_stage,
            fabric=_fabric(self.network, self.card),
        )  # fmt: skip


def decide(request):
    """The Plan of a Request. Raises UserError where something cannot be decided."""
    given, chosen = request.settings, []
    exploring = given.train_data is None
    gpus = request.gpus or given.processes or launched()[0] or 1
    settings = _with_defaults(given)
    card = _choose_card(request, settings.device, chosen)
    settings, options = _machine(settings)
    shards_tokens, vocabulary = (None, None) if exploring else _data(settings)
    config = _model(settings, given, vocabulary, exploring)
    if count_parameters(config) > MOST_PARAMETERS:
        raise UserError(f"-e: a plan is for at most {MOST_PARAMETERS:.0e} parameters, got {count_parameters(config):.1e}: check {config}")
    if given.sequence_length is None and exploring:
        settings = replace(settings, sequence_length=config.max_T)
    if given.zero_stage is None and exploring:
        settings, options = replace(settings, zero_stage=1), replace(options, zero_stage=1)
        chosen += ["-z 1: more than one GPU"] * (gpus > 1)
    plan = Plan(
        settings=settings, given=given, config=config, options=options, gpus=gpus, card=card, network=request.network,
        tokens_per_step=0, steps=1, data_tokens=request.data_tokens or shards_tokens, price=None, price_source="",
        disk_gb=_free_disk(request, settings), chosen=(),
    )  # fmt: skip
    plan = _choose_batch(plan, exploring, chosen)
    plan = _choose_length(plan, request, exploring, chosen)
    return replace(_choose_price(plan, request), chosen=tuple(chosen))


def _with_defaults(given):
    """The trainer's settings for token shards. (Without -i the trainer uses its built-in corpus; a plan is for a run on shards to come.)"""
    typed = {name: value for name, value in dataclasses.asdict(given).items() if value is not None}
    return replace(SHARD_DEFAULTS, **typed)


def _choose_card(request, device, chosen):
    if device == "cpu":
        return None
    if request.gpu:
        return find_card(request.gpu)
    if not real_gpu():
        chosen.append("--gpu h100: no GPU here")
        return "h100"
    card = card_of_device(device_name())
    if card is None:
        raise UserError(f"{device_name()} is not in the table of cards: name the one that is most like it, --gpu {', '.join(CARDS)}")
    return card


def _machine(settings):
    """Settings with device, precision and fusion decided, and the Options of the model. Nothing here needs a GPU."""
    device = "cpu" if settings.device == "cpu" else "gpu"
    fused = settings.kernels in ("auto", "fast") and device == "gpu"
    precision = settings.precision if settings.precision != "auto" else "bf16" if fused else "fp32"
    fusion = default_gelu_fusion(precision) if settings.gelu_fusion is None else settings.gelu_fusion
    settings = replace(settings, device=device, precision=precision, gelu_fusion=fusion)
    kernels = KernelSet("reference" if device == "cpu" else "fast" if fused else "plain", fused=fused)
    return settings, options_of(settings, kernels)


def _data(settings):
    """(tokens of the training shards or None, vocabulary of their tokenizer or None). The shards need not be here."""
    try:
        shards = find_shards(settings.train_data)
    except UserError:
        shards = []
    vocabulary = VOCAB_SIZES.get(tokenizer_of_shards(shards))
    listed = _listed_tokens(settings.train_data)
    return listed or sum(len(Shard(path)) for path in shards) or None, vocabulary


def _listed_tokens(pattern):
    """Tokens of the shards that a manifest lists, here or still to come; 0 if there is none."""
    directory, name = os.path.split(pattern)
    manifests = Path(directory).glob(f"*{MANIFEST}") if not any(sign in directory for sign in "*?[") else ()
    return sum(shard.tokens for manifest in manifests for shard in read_manifest(manifest) if fnmatch.fnmatch(shard.name, name))


def _model(settings, given, vocabulary, exploring):
    """The GPT2Config of -e, which may be a file."""
    name = settings.model
    if name.endswith(".bin"):
        return read_model_file(name, share=None)[0]
    if is_huggingface(name):
        config = huggingface_config(name) or (parse_descriptor(PUBLISHED[name]) if name in PUBLISHED else None)
        if config is None:
            raise UserError(
                f"-e {name}: this model is not on this machine, so its sizes are not known: give them, as in -e d12 or L=4,NH=4,C=128"
            )
        return config
    T = settings.sequence_length if given.sequence_length or not exploring else SHARD_DEFAULTS.sequence_length
    return parse_descriptor(name, default_T=T, default_V=vocabulary or GPT2_VOCAB_SIZE)


def _choose_batch(plan, exploring, chosen):
    """The Plan with -b, -r and -d."""
    settings, given = plan.settings, plan.given
    if given.total_batch_tokens:
        plan = replace(plan, tokens_per_step=given.total_batch_tokens)
    elif exploring and plan.card:
        usual = next(tokens for most, tokens in TOTAL_BATCHES if count_parameters(plan.config) <= most)
        unit = plan.T * plan.gpus * (settings.batch_size if given.batch_size not in (None, "auto") else 1)
        plan = replace(plan, tokens_per_step=max(1, round(usual / unit)) * unit)
        chosen.append(f"-d {plan.tokens_per_step}: usual for this size (GPT-3 paper)")
    if given.batch_size == "auto" or given.batch_size is None and exploring and plan.card:
        B, recompute = _fastest(plan, [settings.recompute] if given.recompute is not None or not exploring else [0, 1, 2])
        chosen.append(
            f"-b {B}, the largest that fits and divides -d" + (f"; -r {recompute}, the fastest" if given.recompute is None else "")
        )
    else:
        B, recompute = settings.batch_size, settings.recompute
        if exploring and given.recompute is None and plan.card:
            fitting = [level for level in (0, 1, 2) if largest_micro_batch(plan, level) >= B]
            recompute = fitting[0] if fitting else 0
            chosen.append(f"-r {recompute}: the least that fits" if fitting else "-r 0: with this -b, no level fits")
    settings = replace(settings, batch_size=B, recompute=recompute)
    tokens_per_step = plan.tokens_per_step or B * plan.T * plan.gpus
    return replace(plan, settings=settings, options=replace(plan.options, recompute=recompute), tokens_per_step=tokens_per_step)


def _fastest(plan, levels):
    """(micro-batch, level of recomputing) of the fastest step among the largest micro-batches that fit and divide the rows of a GPU."""
    rows = plan.tokens_per_step // (plan.T * plan.gpus)
    candidates = []
    for level in levels:
        largest = largest_micro_batch(plan, level)
        if largest:
            B = largest_divisor(rows, largest) if rows else largest
            candidates.append((_row_ms(plan, B, level), level, B))
    _, level, B = min(candidates, default=(0.0, levels[-1], 1))
    return B, level


def _row_ms(plan, B, level):
    return plan.one_gpu(B, level).micro_step / B if can_predict(plan.options) else 0.0


def _choose_length(plan, request, exploring, chosen):
    """The Plan with the number of steps."""
    steps = plan.settings.max_steps
    if request.tokens:
        steps = max(1, round(request.tokens / plan.tokens_per_step))
    elif steps < 1 and plan.data_tokens:
        steps = max(1, plan.data_tokens // plan.tokens_per_step)  # one pass, as the trainer
    elif steps < 1 and not exploring:
        raise UserError("how long the run is cannot be known: its shards are not here. Add --tokens, --data-tokens or -x")
    elif steps < 1:
        steps = max(1, round(CHINCHILLA * count_parameters(plan.config) / plan.tokens_per_step))
        chosen.append(f"-x {steps}: {CHINCHILLA} tokens a parameter (Chinchilla)")
    return replace(plan, steps=steps, settings=replace(plan.settings, max_steps=steps))


def _choose_price(plan, request):
    if request.price is not None:
        return replace(plan, price=request.price, price_source="given")
    card = CARDS.get(plan.card)
    if card is None or card.price is None:
        return plan
    return replace(plan, price=card.price, price_source=f"assumed, {card.price_source}")


def _free_disk(request, settings):
    """GB free for checkpoints: --disk, or on the disk of the log directory."""
    if request.disk is not None:
        return request.disk
    if not settings.log_dir:
        return None
    return free_bytes(settings.log_dir) / 1e9


def _fabric(network, card):
    """The Fabric between cards of a kind: H200s' measured NVLink times the ratio of the published bandwidths."""
    between, ratio = fabric(network), CARDS[card].link / CARDS["h200"].link
    nvlink = {kind: {gpus: ratio * rate for gpus, rate in rates.items()} for kind, rates in between.nvlink.items()}
    return Fabric(between.gpus_per_host, nvlink, between.network, between.latency)
