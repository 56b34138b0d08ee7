"""A program that reads PTX.

`ptx` is a kernel in PTX, as text. A line that begins with a dot declares something, one that begins with // is a comment, one that ends with
a colon is a label; empty lines, and lines that begin with a bracket of any kind, mean nothing. All others are instructions, one in each line.
An instruction may begin with a condition, `@%p1` or `@!%p1`, and then comes its name, up to the next space, such as `ld.global.v4.f32`. Spaces
and tabs may stand before and between. Names of parameters and labels may contain whatever they like, also `.f64` or `ld.global`; so look at
the instruction's name only. Return a dict of four integers:

    "loads"         instructions whose name begins with ld.global
    "bytes loaded"  that these load for a thread, if each is executed once: the type at the end of the name has its bits as a number (.f32
                    and .u32 4 bytes, .b64 8, .u16 2, .s8 1), times 2 if the name has .v2 in it, times 4 if it has .v4
    "local"         instructions whose name begins with ld.local or st.local
    "float64"       instructions whose name has .f64 in it, anywhere

`re`, Python's module for patterns in texts, may help, and can be done without.

    python -m tutorials.check 13_read_ptx
"""

import re


def read_ptx(ptx):
    """{"loads": ..., "bytes loaded": ..., "local": ..., "float64": ...}."""
    found = {"loads": 0, "bytes loaded": 0, "local": 0, "float64": 0}
    for line in ptx.splitlines():
        words = line.split()
        # your lines:
        if not words or words[0].startswith((".", "//", "{", "}", "(", ")")) or line.rstrip().endswith(":"):
            continue
        name = words[1] if words[0].startswith("@") else words[0]
        if name.startswith("ld.global"):
            numbers = 4 if ".v4" in name else 2 if ".v2" in name else 1
            found["loads"] += 1
            found["bytes loaded"] += numbers * int(re.search(r"\d+$", name)[0]) // 8
        found["local"] += name.startswith(("ld.local", "st.local"))
        found["float64"] += ".f64" in name
        # end of your lines
    return found
