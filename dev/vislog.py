# %% [markdown]
# # vislog: the curves of a run
#
# For those who come from llm.c: its notebook `dev/vislog.ipynb`, for the same `main.log`, whichever of the two programs wrote it. The lines
# are llm.c's as well: GPT-2's loss on FineWeb's validation tokens and the HellaSwag accuracies of GPT-2 and GPT-3. The loss line means
# something only for a run on FineWeb with GPT-2's tokens.
#
# For everything else that a run logs, there is a command: `python -m gpt2_numba.plot LOGDIR --html run.html`.

# %%
import matplotlib.pyplot as plt
import numpy as np

from gpt2_numba.plotting.published import GPT2_HELLASWAG, GPT2_VAL_LOSS, GPT3_HELLASWAG
from gpt2_numba.training.log import read_main_log

log = "bench/2026-11-22-cpu-built-in/main.log"  # yours: "../log124M/main.log"
size = None  # "124M", "350M", "774M" or "1558M": which lines to draw

# %% [markdown]
# A log holds several streams, each a pair of arrays: steps and values.

# %%
streams = read_main_log(log)
for name, (steps, _) in streams.items():
    print(f"{name:<14} {len(steps):4d} values", f"from step {steps[0]} to {steps[-1]}" if len(steps) else "")

# %% [markdown]
# Training loss, validation loss, HellaSwag. Single steps are noise: the running mean over 1/50 of the run is easier to compare.


# %%
def running_mean(steps, values, width):
    """(steps, means) of each window of `width` values, at its middle."""
    return steps[width // 2 : len(steps) - width // 2], np.convolve(values, np.full(width, 1 / width), mode="valid")


figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(11, 4), dpi=80)
steps, values = streams["train_loss"]
loss.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=0.7)
loss.plot(*running_mean(steps, values, len(steps) // 50 | 1), color="tab:blue", label="training")
loss.plot(*streams["val_loss"], color="tab:red", marker="o", markersize=3, label="validation")
accuracy.plot(*streams["eval_accuracy"], color="tab:red", marker="o", markersize=3, label="this run")
if size:
    loss.axhline(GPT2_VAL_LOSS["fineweb"][size], color="tab:red", linestyle="--", label=f"GPT-2 {size}")
    accuracy.axhline(GPT2_HELLASWAG[size], color="tab:red", linestyle="--", label=f"GPT-2 {size}")
    accuracy.axhline(GPT3_HELLASWAG[size], color="tab:green", linestyle="--", label=f"GPT-3, size of {size}")
loss.set(xlabel="step", ylabel="loss (nats per token)", title="loss", ylim=(None, max(values[len(values) // 20 :])))
loss.legend()
if len(streams["eval_accuracy"][0]):
    accuracy.set(xlabel="step", ylabel="accuracy", title="HellaSwag")
    accuracy.legend()
else:
    accuracy.set_title("no HellaSwag in this log")
    accuracy.set_axis_off()
plt.show()

# %%
print(f"training loss:   last {streams['train_loss'][1][-1]:.4f}, lowest {streams['train_loss'][1].min():.4f}")
print(f"validation loss: last {streams['val_loss'][1][-1]:.4f}, lowest {streams['val_loss'][1].min():.4f}")
