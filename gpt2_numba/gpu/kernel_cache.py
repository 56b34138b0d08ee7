"""Compiled kernels, kept on disk: to compile one takes a second or more, to load it some milliseconds.

A kernel of gpu/ or layers/ that is decorated with `@cuda.jit(cache=True)` is looked for here before it is compiled, and put here afterwards,
as machine code. In the simulator, which compiles nothing, the word does nothing.

Numba has such a cache of its own, which does not serve here. It goes by the time stamp of the one file that defines the kernel: after
a change of a device function in another file it would go on with the old kernel and hide what the change broke. And two processes that
compile one kernel for different types at the same time can get each other's. So, instead:

- The name of a file is a digest of all that the machine code depends on: the sources from which the kernel can be made (those of gpu/ and
  of its own layer, where a fast kernel may take constants from the layer's plain file: layers do not import each other), the values that
  a factory gave it, its options, its types, the GPU's compute capability, and the versions of compiler and driver. What has changed in any
  way is not found, so nothing can be stale.
- A file is written aside and then renamed, and never changed: processes cannot disturb each other.
- It begins with a digest of its contents. If it is damaged, the kernel is compiled again, and where nothing can be written, kernels are
  only compiled.
- When they become too many, those that have not been used for the longest time are deleted.
"""

import functools
import hashlib
import importlib.metadata
import os
import pickle
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType

import numpy as np

KEPT_BYTES = 256 << 20  # a kernel takes about 0.1 MB: thousands of them, tens of states of the sources
ABANDONED_AFTER = 3600  # seconds; an unfinished file older than this belongs to no process any more
SUFFIX = ".kernel"
PACKAGE = __name__.partition(".")[0]
ROOT = Path(__file__).resolve().parents[1]

# What compiles, links and loads. Those that are not installed as Python packages are covered by the driver's version and the compiler's.
_COMPILERS = (
    "numpy", "llvmlite", "numba", "numba-cuda", "cuda-bindings", "cuda-core", "nvidia-nvvm", "nvidia-cuda-nvcc", "nvidia-nvjitlink",
    "nvidia-cuda-nvrtc", "nvidia-cuda-nvcc-cu12", "nvidia-nvjitlink-cu12", "nvidia-cuda-nvrtc-cu12",
)  # fmt: skip


@dataclass(frozen=True)
class Use:
    """One kernel that this process has got for one list of argument types."""

    kernel: str
    types: str
    loaded: bool  # from disk; else compiled
    seconds: float


uses = []  # of this process, in order: they show where the time went
problems = []  # why kernels were not kept, as text
_at_start = {}  # file -> digest of its contents before any kernel was decorated: never later than what Python runs


class NotCachable(Exception):
    """No other process could know whether this kernel is the same."""


def directory():
    """Where the kernels lie: gpt2_numba/kernels in XDG_CACHE_HOME, by default ~/.cache."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(chosen) if os.path.isabs(chosen) else Path.home() / ".cache") / PACKAGE / "kernels"


def sources_of(module):
    """The files from which a kernel of `module` (a dotted name) can be made: those of gpu/, and of its layer, if it is a layer's.

    A kernel of layers/fast/NAME can be made from layers/NAME, too, whose constants it imports; never the other way round.
    """
    files = sorted((ROOT / "gpu").rglob("*.py"))
    _, room, *rest = module.split(".")
    if room == "layers":
        is_fast = rest[0] == "fast"
        layer = rest[is_fast]
        for place in ("layers", "layers/fast")[: 1 + is_fast]:
            files += [*(ROOT / place).glob(f"{layer}.py"), *sorted((ROOT / place / layer).rglob("*.py"))]
    return files


def name_of(function):
    """FILE.FUNCTION, as in layernorm.layernorm_backward_kernel; fast.FILE.FUNCTION for a kernel of layers/fast."""
    _, _, *rest = function.__module__.split(".")
    return ".".join([*(["fast"] if rest[:1] == ["fast"] else []), *rest[-1:], function.__name__])


def digests_of(files):
    """File -> digest of its contents as it is on disk now."""
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@functools.cache
def versions():
    """Compiler and driver, as text."""
    from numba.cuda.cudadrv.driver import driver
    from numba.cuda.cudadrv.runtime import runtime

    found = [f"python {platform.python_implementation()} {platform.python_version()}"]
    for distribution in _COMPILERS:
        try:
            found.append(f"{distribution} {importlib.metadata.version(distribution)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    found.append(f"CUDA {runtime.get_version()}, driver {driver.get_version()}")
    return "\n".join(found)


def describe(value):
    """Text for a value from a closure, the same in every process. Raises NotCachable for what has none."""
    if value is None or isinstance(value, (bool, int, float, str, bytes, np.generic, np.dtype)):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(describe, value))})"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, (ModuleType, BuiltinFunctionType)):
        return value.__name__
    function = getattr(value, "py_func", getattr(value, "_defn", value))  # of a device function, of an intrinsic
    if isinstance(function, FunctionType):
        return describe_function(function)
    if hasattr(value, "cast_python_value"):  # a type such as numba.float32
        return str(value)
    raise NotCachable(f"a {type(value).__name__}")


def describe_function(function):
    """Text for a function: its module, name and line, and the values that it got from the function around it."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or ())
    around = ", ".join(f"{name} = {describe(cell.cell_contents)}" for name, cell in cells)
    return f"{function.__module__}.{function.__qualname__}, line {function.__code__.co_firstlineno}, with ({around})"


class KernelCache:
    """The files of one kernel. Numba's dispatcher asks it before it compiles, and hands it what it has compiled."""

    def __init__(self, dispatcher):
        self.function, self.options = dispatcher.py_func, dispatcher.targetoptions
        self.name = name_of(self.function)
        self.sources = sources_of(self.function.__module__)
        self.started = 0.0

    @property
    def cache_path(self):
        return str(directory())

    def path(self, argument_types):
        """The file for these argument types on the GPU in use. Raises NotCachable."""
        from numba.cuda import dispatcher

        if self.options.get("link") or self.options.get("extensions"):
            raise NotCachable("a kernel linked with other code")
        known = [
            *(f"{path.relative_to(ROOT).as_posix()} {_at_start[path]}" for path in self.sources),
            versions(),
            describe_function(self.function),
            *(f"{option} = {describe(value)}" for option, value in sorted(self.options.items())),
            *(str(kind) for kind in argument_types),
            f"compute capability {tuple(dispatcher.get_current_device().compute_capability)}",
        ]
        digest = hashlib.sha256("\n".join(known).encode()).hexdigest()
        return directory() / f"{self.name}-{digest[:32]}{SUFFIX}"

    def load_overload(self, argument_types, target_context):
        """The kernel, bound to the GPU; None if it is not here or does not serve: then it is compiled."""
        self.started = time.perf_counter()
        try:
            path = self.path(argument_types)
            stored = path.read_bytes()
            digest, contents = stored[:32], stored[32:]
            if hashlib.sha256(contents).digest() != digest:
                raise ValueError("damaged")
            kernel = rebuild(contents)
            os.utime(path)  # used just now
        except FileNotFoundError:
            return None
        except Exception as error:
            problems.append(f"{self.name}: {type(error).__name__}: {error}")
            return None
        self.note(argument_types, loaded=True)
        return kernel

    def save_overload(self, argument_types, kernel):
        """Keep a kernel that has been compiled. Where that cannot be done, the run goes on without."""
        self.note(argument_types, loaded=False)
        try:
            changed = [path for path, digest in digests_of(self.sources).items() if digest != _at_start[path]]
            if changed:
                raise NotCachable(f"{changed[0]} has been changed since this process began")
            contents = reduce(kernel)
            write(self.path(argument_types), hashlib.sha256(contents).digest() + contents)
            delete_unused()
        except Exception as error:  # of the file system, of pickle, of a Numba that is not the one we know
            problems.append(f"{self.name}: {type(error).__name__}: {error}")

    def note(self, argument_types, loaded):
        uses.append(Use(self.name, ", ".join(map(str, argument_types)), loaded, time.perf_counter() - self.started))

    def flush(self):
        """Forget this kernel, whatever it was compiled for. Numba calls it before it compiles again."""
        for path in directory().glob(f"{self.name}-*{SUFFIX}"):
            path.unlink(missing_ok=True)


def reduce(kernel):
    """What must be kept of a kernel, as bytes."""
    from numba.cuda.serialize import dumps

    if kernel.launch_config_sensitive:
        raise NotCachable("it was compiled for one launch configuration")
    return dumps(kernel._reduce_states())


def rebuild(contents):
    """A kernel from what was kept of it, bound to the GPU."""
    from numba.cuda.dispatcher import _Kernel

    kernel = _Kernel._rebuild(**pickle.loads(contents))
    kernel.bind()  # now, so that machine code that the driver refuses is found out while it can still be compiled
    return kernel


def write(path, contents):
    """Write a file so that no process ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, aside = tempfile.mkstemp(dir=path.parent, suffix=".unfinished")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(contents)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def files():
    """All kernels here: (time of last use, bytes, path), the latest first."""
    found = []
    for path in directory().glob(f"*{SUFFIX}"):
        try:
            found.append((path.stat().st_mtime, path.stat().st_size, path))
        except OSError:  # another process has just deleted it
            continue
    return sorted(found, reverse=True)


@functools.cache
def delete_unused():
    """Delete the kernels beyond KEPT_BYTES that have not been used for the longest time, and abandoned files. Once a process."""
    kept = 0
    try:
        for _, size, path in files():
            kept += size
            if kept > KEPT_BYTES:
                path.unlink(missing_ok=True)
        for path in directory().glob("*.unfinished"):
            if time.time() - path.stat().st_mtime > ABANDONED_AFTER:
                path.unlink(missing_ok=True)
    except OSError:
        pass


def install():
    """From now on `cache=True` means this cache, for kernels of gpu/ and layers/; other people's keep Numba's."""
    from numba.cuda.dispatcher import CUDADispatcher

    _at_start.update(digests_of(path for room in ("gpu", "layers") for path in (ROOT / room).rglob("*.py")))
    numbas_own = CUDADispatcher.enable_caching

    def enable_caching(dispatcher):
        if dispatcher.py_func.__module__.startswith((f"{PACKAGE}.gpu.", f"{PACKAGE}.layers.")):
            dispatcher._cache = KernelCache(dispatcher)
        else:
            numbas_own(dispatcher)

    CUDADispatcher.enable_caching = enable_caching
