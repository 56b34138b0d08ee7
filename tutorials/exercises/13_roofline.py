"""What bounds each launch, and how close is it?

`launches` is a list of dicts: "name", "bytes" and "flop" of one call, at least; "ms", the milliseconds that a call took; "calls", how often
it is called in a step. `copy` is the ceiling of memory in bytes per second, `matmul` that of the tensor cores in FLOP per second. Return a
dict:

    "bound"   {name: "memory" or "matmul"}: which ceiling gives the larger least time; memory, if both are equal
    "share"   {name: share}: the floor, which is the larger least time, divided by the time that it took
    "step"    a number: the floors of all calls of all launches together, divided by the time of all calls together

    python -m tutorials.check 13_roofline
"""


def roofline(launches, copy, matmul):
    """{"bound": {name: ...}, "share": {name: ...}, "step": ...}."""
    bound, share = {}, {}
    least, taken = 0.0, 0.0  # milliseconds of the step
    for launch in launches:
        by_memory = 1000 * launch["bytes"] / copy  # milliseconds
        # your lines:
        # end of your lines
    # your lines:
    # end of your lines
