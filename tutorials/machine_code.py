"""What a kernel is compiled to: its PTX, and how many registers and bytes of memory its threads take. All of it without a GPU.

    compile_kernels({add: "float32[::1], float32[::1]"})                                     a function, to be compiled as a kernel
    compile_kernels({"gpt2_numba.layers.gelu.gelu_forward_kernel": "float32[:, ::1], float32[:, ::1]"})      one of the package

Without a compiler they print how to install it, and return no kernels.
"""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from types import SimpleNamespace

COMPUTE_CAPABILITY = (9, 0, "a")  # Hopper: H100, H200
MISSING = "this needs Numba's compiler for GPUs, but no GPU: pip install -e '.[tutorials]'"


@dataclass(frozen=True)
class Code:
    """A compiled kernel: its PTX, a line for each instruction or label; registers of a thread; bytes that a thread and a block take."""

    instructions: tuple
    registers: int
    local_bytes: int  # of a thread: arrays and values for which there is no register
    shared_bytes: int  # of a block, of a fixed size; memory that the launch asks for is not counted

    def with_words(self, *words):
        """The instructions in which one of these words occurs."""
        return [line for line in self.instructions if any(word in line for word in words)]


def compile_kernels(signatures):
    """{name: Code} for kernels compiled for Hopper; without a compiler it prints how to install it, and returns {}.

    signatures   {kernel: types of its arguments, as text}. A kernel is a function, which may use np, math, cuda, float32 and ZERO; or a
                 text, the dotted name of a kernel of the package, or of a function that makes one, called: "...make_kernel(64)"
    """
    asked = [(_described(kernel), signature) for kernel, signature in signatures.items()]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}  # Numba compiles nothing for a GPU in a process that simulates one
    program = [sys.executable, "-m", "tutorials.machine_code"]
    ran = subprocess.run(program, input=json.dumps(asked), env=environment, capture_output=True, text=True, cwd=_root())
    answer = json.loads(ran.stdout) if ran.returncode == 0 else None
    if answer is None:
        print(MISSING if ran.returncode == 0 else f"the compiler does not run: {ran.stderr.strip().rpartition(chr(10))[2]}")
        return {}
    return {name: Code(tuple(_instructions(ptx)), *numbers) for name, (ptx, *numbers) in answer.items()}


def _root():
    from tutorials.quotes import ROOT

    return ROOT


def _described(kernel):
    """A kernel as (name, source), or as (dotted name, "")."""
    return (kernel, "") if isinstance(kernel, str) else (kernel.__name__, textwrap.dedent(inspect.getsource(kernel)))


def _instructions(ptx):
    """The lines of a kernel's body: instructions and labels, each in short form, without what is only declared."""
    lines = (" ".join(line.split()).rstrip(";") for line in ptx.partition("\n{")[2].splitlines())
    lines = (re.sub(r"\[_ZN\w+?_param_(\d+)\]", r"[parameter \1]", line) for line in lines)
    return [line for line in lines if line and not line.startswith((".", "//", "}", "{"))]


# ------------------------------------------------------------------------------------- the program that compiles them


def _compile_all(asked):
    from numba import cuda
    from numba.cuda import dispatcher

    # All that the compiler asks the current GPU for.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=COMPUTE_CAPABILITY)
    answer = {}
    for (name, source), signature in asked:
        kernel = _defined(name, source) if source else _imported(name)
        bounds = getattr(kernel, "targetoptions", {}).get("launch_bounds")
        function = getattr(kernel, "py_func", kernel)
        ptx, _ = cuda.compile_ptx(function, _types(signature), cc=COMPUTE_CAPABILITY, launch_bounds=bounds)
        answer[function.__name__ if source else name] = (ptx, *_resources(ptx))
    return answer


def _types(signature):
    from numba import types

    return eval(f"({signature},)", {"__builtins__": {}, **vars(types)})


def _defined(name, source):
    """A function of the caller's own, from its source."""
    import math

    import numpy as np
    from numba import cuda, float32

    names = {"np": np, "math": math, "cuda": cuda, "float32": float32, "ZERO": np.float32(0), "__name__": "__main__"}
    exec(source, names)
    return names[name]


def _imported(name):
    """A kernel of the package: MODULE.KERNEL, or MODULE.FUNCTION(NUMBERS) for one that a function makes, the first if it makes several."""
    path, _, arguments = name.partition("(")
    module, _, attribute = path.rpartition(".")
    thing = getattr(importlib.import_module(module), attribute)
    if arguments:
        thing = thing(*json.loads(f"[{arguments.removesuffix(')').lower()}]"))
    return thing[0] if isinstance(thing, tuple) else thing


def _resources(ptx):
    """Registers and bytes of local memory of a thread, and bytes of shared memory of a block: what the assembler says."""
    from cuda.bindings import nvjitlink

    options = [f"-arch={re.search(r'^.target (sm_[0-9a-z]+)', ptx, re.M)[1]}", "-verbose"]
    linker = nvjitlink.create(len(options), options)
    text = ptx.encode()
    nvjitlink.add_data(linker, nvjitlink.InputType.PTX, text, len(text), "kernel")
    nvjitlink.complete(linker)
    said = bytearray(nvjitlink.get_info_log_size(linker))
    nvjitlink.get_info_log(linker, said)
    said = said.decode()
    shared = re.search(r"(\d+) bytes smem", said)
    stack = int(re.search(r"(\d+) bytes stack frame", said)[1])
    reserved = 1024  # Hopper keeps as much of every block's shared memory, and the assembler counts it
    return int(re.search(r"Used (\d+) registers", said)[1]), stack, max(int(shared[1]) - reserved, 0) if shared else 0


def _main():
    from tutorials.check.compiling import missing_compiler

    asked = json.load(sys.stdin)
    try:
        from cuda.bindings import nvjitlink

        nvjitlink.version()
        missing = missing_compiler()
    except Exception:  # a library may be missing, or not load
        missing = "no linker"
    print(json.dumps(None if missing else _compile_all(asked)))


if __name__ == "__main__":
    _main()
