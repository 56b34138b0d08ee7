"""13_roofline: bound, share, and the share of the whole."""

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise

COPY, MATMUL = 4.0e12, 8.0e14


def arguments(random, count):
    """Launches on both sides of the ridge, of shares and calls that differ; the first one lies on the ridge."""
    launches = []
    for index in range(count):
        nbytes = int(random.integers(1 << 20, 1 << 30))
        intensity = 200 if index == 0 else float(10.0 ** random.uniform(-1, 3.5))
        flop = int(nbytes * intensity)
        floor = 1000 * max(nbytes / COPY, flop / MATMUL)
        ms = floor / float(random.uniform(0.2, 1.1))
        launches.append({"name": f"launch {index}", "bytes": nbytes, "flop": flop, "ms": ms, "calls": int(random.integers(1, 30))})
    return {"launches": launches, "copy": COPY, "matmul": MATMUL}


def judged(launches, copy, matmul, *, combine=max, weigh=True, calls=True, seconds=1000, inverse=False):
    """The answer; with other keywords, a wrong one."""
    bound, share, least, taken = {}, {}, 0.0, 0.0
    for launch in launches:
        times = seconds * launch["bytes"] / copy, seconds * launch["flop"] / matmul
        floor, times_called = combine(times), launch["calls"] if calls else 1
        bound[launch["name"]] = "memory" if times[0] >= times[1] else "matmul"
        share[launch["name"]] = launch["ms"] / floor if inverse else floor / launch["ms"]
        least, taken = least + times_called * floor, taken + times_called * launch["ms"]
    step = least / taken if weigh else sum(share.values()) / len(share)
    return {"return": {"bound": bound, "share": share, "step": step}}


def mistaken(**changed):
    return lambda **given: judged(**given, **changed)


EXERCISE = host_exercise(
    function="roofline",
    arguments=arguments,
    reference=judged,
    sizes=({"count": 1}, {"count": 2}, {"count": 25}),
    hints={
        "": (
            "Two least times for each launch: bytes / copy and flop / matmul, in seconds; the table's times are milliseconds.",
            "The larger of both is the floor, and tells what bounds the launch. Its share is floor / ms.",
            "For the step, add up calls * floor and calls * ms over all launches, and divide only at the end.",
        ),
        "not written": ("The function must return the dict, after the loop.",),
        "value": ("Memory moves the bytes while the tensor cores compute: so the larger of both times counts, not their sum.",),
    },
    mistakes=(
        Mistake(mistaken(combine=sum), "Moving and computing go on at the same time: the floor is the larger of both, not their sum."),
        Mistake(mistaken(combine=min), "That is the smaller of both times. A launch must do both, so the larger one counts."),
        Mistake(mistaken(weigh=False), "That is the mean of the shares. A launch that takes long must count for more: add up the times."),
        Mistake(mistaken(calls=False), "A launch that is called 20 times counts 20 times in the step."),
        Mistake(mistaken(seconds=1), "bytes / copy are seconds, ms are milliseconds: a factor of 1000."),
        Mistake(mistaken(inverse=True), "The share is floor / ms: 1 for a launch that cannot be faster."),
    ),
    wrong=(
        Wrong("the sum of both", {"max(by_memory, by_matmul)": "by_memory + by_matmul"}, "value", "not their sum"),
        Wrong("the smaller", {"max(by_memory": "min(by_memory"}, "value", "smaller of both"),
        Wrong("the mean of the shares", {"least / taken": "sum(share.values()) / len(share)"}, "value", "mean of the shares"),
        Wrong("every launch once", {'launch["calls"] * floor': "floor", 'launch["calls"] * launch["ms"]': 'launch["ms"]'}, "value", "called 20 times"),
        Wrong("seconds", {"1000 * launch": "launch"}, "value", "factor of 1000"),
        Wrong("upside down", {'floor / launch["ms"]': 'launch["ms"] / floor'}, "value", "floor / ms"),
        Wrong("matmul, if both are equal", {"by_memory >= by_matmul": "by_memory > by_matmul"}, "value"),
        Wrong("bound by memory, always", {'"memory" if by_memory >= by_matmul else "matmul"': '"memory"'}, "value"),
        Wrong("no step", {', "step": least / taken': ""}, "value"),
        Wrong("printed", {'    return {"bound"': '    result = {"bound"'}, "not written", "must return"),
    ),
)  # fmt: skip
