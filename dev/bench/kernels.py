"""(b) Every launch of the trainer on its own, at the model's sizes: time with a cold cache, share of its ceiling, correctness.

There is no list of kernels: one step of the real model is recorded, and each distinct launch is repeated alone.
"""

import math
import statistics

from dev.bench.ceilings import product_name
from dev.bench.clock import time_call
from dev.bench.costs import launch_cost
from dev.bench.launches import work_key
from gpt2_numba.layer_checks import LAYERS, Sizes, check_kernel

# The references of layer_checks run on the host, so there are few rows; the widths (channels, heads, and the vocabulary if it is a width)
# are the model's.
CHECKED_B, CHECKED_T = 2, 200
FEW_TOKENS = 64  # for layers with a row as long as the vocabulary for each token
SMALL_VOCABULARY = 5003, 5120  # V and Vp for layers to which the vocabulary is only a number of rows


def measure_kernels(log, config, ceilings, verdicts):
    """Time each distinct launch of `log`. Returns a list of dictionaries, in the order of the model.

    ceilings   copy and matmul rates to compare with, as in Cost.floor
    verdicts   layer -> text, from check_layers
    """
    groups, passed = {}, {}
    for launch in log.launches:
        groups.setdefault(work_key(launch), []).append(launch)
        name = launch_name(launch, config)
        passed.setdefault(name, set()).update(argument for argument, value in launch.arguments.items() if value is not None)
    rows = []
    for same in groups.values():
        launch, name = same[0], launch_name(same[0], config)
        left_out = sorted(argument for argument in passed[name] if launch.arguments[argument] is None)
        row = _time(launch, f"{name} without {', '.join(left_out)}" if left_out else name, ceilings)
        row.update(calls=len(same), check=verdicts.get(launch.layer, ""))
        different = {}
        for part in launch.parts:
            different.setdefault(work_key(part), []).append(part)
        if len(launch.parts) > 1:  # also on their own
            row["parts"] = [{**_time(parts[0], part_name(parts[0], launch), ceilings), "calls": len(parts)} for parts in different.values()]
        rows.append(row)
    return rows


def _time(part, name, ceilings):
    times, cost = time_call(part.call), launch_cost(part)
    row = {"name": name, "shape": largest_shape(part), "ms": statistics.median(times), "fastest_ms": min(times), "repeats": len(times)}
    if cost is not None:
        floor = cost.floor(ceilings)
        row.update(bytes=cost.bytes, flop=cost.flop, is_product=cost.is_product)
        row.update(bound=cost.bound(ceilings), floor_ms=floor, share=floor / row["ms"])
    return row


def launch_name(launch, config):
    """The name of a launch in tables: linear layers are named by their weights."""
    C = config.C
    linear = {(3 * C, C): "qkv", (C, C): "attproj", (4 * C, C): "fc", (C, 4 * C): "fcproj", (config.Vp, C): "classifier"}
    weight = launch.arguments.get("weight")
    if launch.name.startswith("matmul"):
        return f"{launch.name} {linear.get(tuple(weight.shape), tuple(weight.shape))}"
    return launch.name


def part_name(part, launch):
    """The name of a part in tables: products are named by their results."""
    if part.name != "gemm":
        return part.name
    if launch.name.startswith("matmul"):
        return f"gemm {product_name(part)}"
    return f"gemm {part.arguments['rows']} x {part.arguments['columns']} x {part.arguments['inner']}"


def largest_shape(part):
    """The shape of the largest array among the arguments, except scratch."""
    arrays = [value for name, value in part.arguments.items() if hasattr(value, "shape") and name not in ("scratch", "partials")]
    return list(max((tuple(array.shape) for array in arrays), key=math.prod, default=()))


# ----------------------------------------------------------------------------------------------------------- checks


def checked_sizes(layer, config):
    """Sizes for the check of one of LAYERS: the model's widths, few rows."""
    B, T, V, Vp = CHECKED_B, CHECKED_T, config.V, config.Vp
    if layer in ("classifier", "matmul without bias"):
        B, T = 1, FEW_TOKENS
    elif V > SMALL_VOCABULARY[0]:
        V, Vp = SMALL_VOCABULARY
    return Sizes(B=B, T=T, C=config.C, NH=config.NH, V=V, Vp=Vp, OC=3 * config.C)


def check_layers(config, precision, sizes=checked_sizes):
    """Check every layer's fast kernels against the reference.

    Returns layer file -> "ok" with the largest error as a share of its bound, or "WRONG"; and the Rows that failed.
    """
    by_file = {}
    for layer in LAYERS:
        by_file.setdefault(layer_file(layer), []).extend(check_kernel(layer, precision, sizes(layer, config)))
    verdicts, wrong = {}, []
    for file, rows in by_file.items():
        wrong += [row for row in rows if not row.ok]
        # The largest error as a share of its bound; tensors whose bits must agree have none.
        worst = max((row.error / row.bound for row in rows if row.bound), default=0.0)
        verdicts[file] = f"ok {worst:.2f}" if all(row.ok for row in rows) else "WRONG"
    return verdicts, wrong


def layer_file(layer):
    """The file in layers/fast/ of one of LAYERS."""
    return {"matmul without bias": "matmul", "mean loss": "classifier"}.get(layer, layer.replace(" ", "_"))
