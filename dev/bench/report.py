"""The measurements as text tables."""

import statistics

SMALL_MS = 0.005  # a launch with a shorter floor is dominated by launch overhead: its share of the copy rate is meaningless


def ceilings_table(ceilings):
    """The ceilings of the GPU."""
    rows = []

    def row(name, measured, unit, scale, remark=""):
        clock, power = measured.get("sm_clock_mhz"), measured.get("mean_power_w") or measured.get("power_w")
        rows.append([
            name,
            f"{measured['burst'] / scale:.2f} {unit}",
            f"{measured['sustained'] / scale:.2f} {unit}" if "sustained" in measured else "",
            f"{clock:.0f} MHz" if clock else "", f"{power:.0f} W" if power else "", remark,
        ])  # fmt: skip

    row("copy, read + write", ceilings["copy"], "TB/s", 1e12)
    size = ceilings["square"]["size"]
    row(f"matmul {size} x {size} x {size}", ceilings["square"], "TF/s", 1e12)
    whole = ceilings["all_products"]
    row("all matmuls of a micro-step", whole, "TF/s", 1e12, f"alone: {whole['tokens_per_second'] / 1e3:.1f}k tok/s")
    for one in ceilings["products"]:
        row(f"  {' x '.join(map(str, one['MNK']))} {one['name']}", one, "TF/s", 1e12, f"{one['calls']} per micro-step")
    return table(["ceiling", "burst", "sustained", "SM clock", "power", ""], rows)


def kernels_table(kernels):
    """Every launch on its own, followed by its parts."""
    rows = []
    for launch in kernels:
        rows.append(_kernel_row(launch["name"], launch) + [launch["check"]])
        rows += [_kernel_row(f"  {part['name']}", part) + [""] for part in launch.get("parts", [])]
    return table(["launch, cold cache", "shape", "calls", "ms", "GB", "GFLOP", "rate", "of ceiling", "check"], rows)


def _kernel_row(name, row):
    shape, calls, ms = " x ".join(map(str, row["shape"])), str(row["calls"]), f"{row['ms']:.4f}"
    if "share" not in row:
        return [name, shape, calls, ms, "", "", "", ""]
    by_memory = row["bound"] == "memory"
    rate = f"{row['bytes'] / row['ms'] / 1e9:.2f} TB/s" if by_memory else f"{row['flop'] / row['ms'] / 1e9:.0f} TF/s"
    share = f"{row['share']:.0%} {row['bound']}"
    return [name, shape, calls, ms, f"{row['bytes'] / 1e9:.3f}", f"{row['flop'] / 1e9:.1f}", rate, share]


def timeline_table(timeline):
    """Where the time of a step goes: by launch, then the rest."""
    rows = []
    for name, part in timeline["parts"].items():
        floor = "not counted" if part.get("not_counted") else f"{part['floor_ms']:.3f}"
        share = "" if part.get("not_counted") or part["share"] is None else f"{part['share']:.0%} {part['bound']}"
        each = 1000 * part["ms"] / part["calls"]
        rows.append([name, str(part["calls"]), f"{each:.1f}", f"{part['ms']:.3f}", f"{part['of_step']:.1%}", floor, share])
    for name, ms in (("all kernels", timeline["kernels_ms"]), ("left over: gaps", timeline["left_over_ms"]), ("step", timeline["step_ms"])):
        floor = f"{timeline['floor_ms']:.3f}" if name == "step" else ""
        share = f"{timeline['speed_of_light']:.0%}" if name == "step" else ""
        rows.append([name, "", "", f"{ms:.3f}", f"{ms / timeline['step_ms']:.1%}", floor, share])
    return table(["in the step", "calls", "µs each", "ms", "of step", "floor ms", "of ceiling"], rows)


def summary(result):
    """The most important figures, as lines of text."""
    lines = []
    for mode, step in result.get("step", {}).items():
        mfu = f"{step['mfu']:.1%} MFU" if step["mfu"] else "MFU unknown"
        clock = f", SM {step['sm_clock_mhz']:.0f} MHz, {step['power_w']:.0f} W" if step.get("sm_clock_mhz") and step.get("power_w") else ""
        lines.append(
            f"step, {mode}: {step['ms']:.2f} ms, {step['tokens_per_second']:,.0f} tok/s, {mfu}; host {step['host_ms_micro_step']:.2f} ms a "
            f"micro-step, {step['host_ms_update']:.2f} ms an update{clock}"
        )
        if gaps := step.get("gap_ms"):
            lines.append(
                f"  gap between steps on the GPU: {statistics.median(gaps):.3f} ms = "
                f"{statistics.median(gaps) / step['ms']:.2%} of the step, "
                f"at most {max(gaps):.3f}; the GPU ran out of work at {step['ran_out_of_work']} of {len(gaps)}"
            )
    if timeline := result.get("timeline"):
        phases = ", ".join(f"{name} {ms:.1f} ms" for name, ms in timeline["phases"].items())
        lines.append(
            f"kernels {timeline['kernels_ms']:.1f} ms ({phases}), left over {timeline['left_over_ms']:.1f} ms = {timeline['left_over']:.1%}"
        )
        lines.append(f"speed of light {timeline['floor_ms']:.1f} ms: the step runs at {timeline['speed_of_light']:.1%} of it")
    if kernels := result.get("kernels"):
        large = [k for k in kernels if k.get("bound") == "memory" and k["floor_ms"] > SMALL_MS]
        slow = sorted((k for k in large if k["share"] < 0.9), key=lambda k: k["share"])
        slow = ", ".join(f"{kernel['name']} {kernel['share']:.0%}" for kernel in slow)
        lines.append(f"memory-bound below 90 % of the copy rate: {slow or 'none'}")
    for row in result.get("wrong", []):
        lines.append(f"WRONG {row}")
    return "\n".join(lines)


def table(header, rows):
    """Rows of text as aligned columns: the first and last to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    last = len(header) - 1

    def line(row):
        cells = [cell.rjust(width) if 0 < i < last else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])
