"""What kernels are compiled to, instruction by instruction, without a GPU: PTX, the GPU's assembly language.

    compiled({"plain": (gelu_forward_kernel, "float32[:, ::1], float32[:, ::1]")})     {"plain": ["ld.param.u64 %rd42, [...];", ...]}
    counted(instructions)                                                              Counter({"mul.f32": 35, ...})

ptx.py picks the instructions with floats.
"""

import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter

from tutorials.quotes import ROOT

_PROGRAM = """
import importlib, json, math, sys
from types import SimpleNamespace
import numpy as np
from numba import cuda, float32, uint16
from numba.cuda import dispatcher
from gpt2_numba.layers.gelu import CUBIC, HALF, ONE, SQRT_2_OVER_PI, THREE_CUBIC

ZERO = np.float32(0)
dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=(9, 0))  # all that the compiler asks it for
ptx = {}
for title, (module, name, signature) in json.loads(sys.argv[1]).items():
    function = getattr(importlib.import_module(module), name).py_func if module else globals()[name]
    ptx[title], _ = cuda.compile_ptx(function, eval(f"({signature},)"), cc=(9, 0))
print(json.dumps(ptx))
"""


def compiled(kernels):
    """The instructions of kernels compiled for an H100: {title: list of text}, or None if there is no compiler.

    kernels   {title: (kernel, types of its arguments as text)}. A kernel is one of the package's or of dev.kernels, or a function of a cell,
              which may use np, math, cuda, float32, ZERO and the constants of layers/gelu.py

    They are compiled in a process of their own, since Numba compiles nothing for a GPU in a process that simulates one.
    """
    program, request = _PROGRAM.partition("\nptx = {}"), {}
    sources = []
    for title, (kernel, signature) in kernels.items():
        function = getattr(kernel, "py_func", kernel)
        own = kernel is function
        if own:
            sources.append(textwrap.dedent(inspect.getsource(function)))
        request[title] = "" if own else function.__module__, function.__name__, signature
    text = "\n".join([program[0], *sources, program[1] + program[2]])
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", text, json.dumps(request)], env=environment, capture_output=True, text=True)
    if ran.returncode != 0:
        return None
    return {title: _instructions(ptx) for title, ptx in json.loads(ran.stdout).items()}


def _instructions(ptx):
    """The lines of PTX that the hardware executes: without declarations, labels and comments."""
    lines = (re.sub(r"^@!?%p\d+ ", "", " ".join(line.split())) for line in ptx.splitlines())
    return [line for line in lines if re.match(r"[a-z][a-z0-9]*[.\w]* .*;$|ret;$", line)]


def counted(instructions):
    """How often each kind of instruction occurs: a Counter of names such as mul.f32."""
    return Counter(line.split()[0].rstrip(";") for line in instructions)
