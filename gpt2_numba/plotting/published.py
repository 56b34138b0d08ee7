"""Figures of GPT-2 and GPT-3, to compare a run with. They mean something only for the same text and, for losses, the same tokens.

Sources: llm.c's dev/vislog.ipynb for GPT-2's loss on FineWeb and its HellaSwag accuracy (acc_norm by llm.c's evaluation, which is ours);
build-nanogpt's play.ipynb for the loss on FineWeb-Edu; Brown et al. 2020, "Language Models are Few-Shot Learners" (arXiv:2005.14165), table
H.1, zero-shot, for GPT-3.
"""

import math
from pathlib import Path

from gpt2_numba.config import GPT2_VOCAB_SIZE

# Name of a size -> its parameters.
GPT2_SIZES = {"124M": 124e6, "350M": 355e6, "774M": 774e6, "1558M": 1558e6}
GPT2_VAL_LOSS = {
    "fineweb": {"124M": 3.424958, "350M": 3.083089, "774M": 3.000580, "1558M": 2.831273},
    "fineweb-edu": {"124M": 3.2924},
}
GPT2_HELLASWAG = {"124M": 0.294463, "350M": 0.375224, "774M": 0.431986, "1558M": 0.488946}
GPT3_HELLASWAG = {"124M": 0.337, "350M": 0.436, "774M": 0.510, "1558M": 0.547}
GPT3_NAMES = {"124M": "125M", "350M": "350M", "774M": "760M", "1558M": "1.3B"}
CHOICES = ("auto", "none", *GPT2_SIZES)


def published_lines(runs, baseline="auto"):
    """What to draw beside the runs: {"val_loss" or "eval_accuracy": [(label, value)]}.

    baseline  "auto": the size nearest to each run's model, the loss only where run.jsonl says that the model has GPT-2's vocabulary and is
              validated on FineWeb; "none"; or a size, for which the loss is FineWeb's
    """
    lines = {"val_loss": {}, "eval_accuracy": {}}
    for run in runs:
        size = _nearest(run.header) if baseline == "auto" else baseline
        if size not in GPT2_SIZES:
            continue
        text = _text(run.header) if baseline == "auto" else "fineweb"
        loss = GPT2_VAL_LOSS.get(text, {}).get(size)
        if loss is not None and len(run.get("val_loss")[0]):
            lines["val_loss"][f"GPT-2 {size}"] = loss
        if len(run.get("eval_accuracy")[0]):
            lines["eval_accuracy"][f"GPT-2 {size}"] = GPT2_HELLASWAG[size]
            lines["eval_accuracy"][f"GPT-3 {GPT3_NAMES[size]}"] = GPT3_HELLASWAG[size]
    return {name: sorted(values.items(), key=lambda line: line[1]) for name, values in lines.items()}


def _nearest(header):
    """The size whose parameters are nearest in proportion; None if the run's are not known."""
    model = header.get("model")
    parameters = model.get("parameters") if isinstance(model, dict) else None
    if not isinstance(parameters, int) or parameters < 1:
        return None
    return min(GPT2_SIZES, key=lambda size: abs(math.log(GPT2_SIZES[size] / parameters)))


def _text(header):
    """What the run is validated on: a key of GPT2_VAL_LOSS, or None."""
    model, settings = (header.get(name) if isinstance(header.get(name), dict) else {} for name in ("model", "settings"))
    name = Path(str(settings.get("val_data") or "")).name.lower()
    if model.get("V") != GPT2_VOCAB_SIZE or "fineweb" not in name:
        return None
    return "fineweb-edu" if "edu" in name else "fineweb"
