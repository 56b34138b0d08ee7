"""Compiled kernels, kept on disk: compiling one takes a second or more, loading it a few milliseconds.

A kernel of gpu/ or layers/ that is decorated with `@cuda.jit(cache=True)` is looked up here before it is compiled, and stored here
afterwards, as machine code. In the simulator, which compiles nothing, `cache=True` has no effect.

Numba's own cache is not safe here. It checks the time stamp of only the file that defines the kernel: after a change to a device function
in another file it would still use the old kernel and hide what the change broke. And two processes that compile one kernel for different
types at the same time can get each other's. This cache works differently:

- The name of a file is a digest of everything that the machine code depends on: the sources from which the kernel can be made (integers.py,
  gpu/ and the files of its own layer, for a fast kernel also the layer's plain files; layers do not import each other), the values that a
  factory gave it, its options, its types, the GPU's compute capability, and the versions of compiler and driver. Any change gives another
  name, so nothing can be stale.
- A file is written under a temporary name, then renamed, and never modified: processes cannot disturb each other.
- It begins with a digest of its contents. If it is damaged, the kernel is compiled again. If nothing can be written, kernels are compiled
  in every process.
- A process that is about to compile a kernel claims it (claims.py); another that needs the same one waits and loads it. So processes that
  start together share the work, and others may compile ahead (training/compile_ahead.py).
- When the cache grows too large, the least recently used kernels are deleted.
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

from gpt2_numba.gpu import claims

KEPT_BYTES = 256 << 20  # a kernel takes about 0.1 MB: thousands of kernels, from tens of versions of the sources
ABANDONED_AFTER = 3600  # seconds; no process is still writing an unfinished file older than this
SUFFIX = ".kernel"
LIST_SUFFIX = ".list"  # names of all the kernels that a run needs (training/compile_ahead.py)
UNUSED_AFTER = 30 * 86400  # seconds; lists that no run has read for so long are deleted
PACKAGE = __name__.partition(".")[0]
ROOT = Path(__file__).resolve().parents[1]

# What compiles, links and loads. Components that are not Python packages are covered by the versions of the driver and the CUDA runtime.
_COMPILERS = (
    "numpy", "llvmlite", "numba", "numba-cuda", "cuda-bindings", "cuda-core", "nvidia-nvvm", "nvidia-cuda-nvcc", "nvidia-nvjitlink",
    "nvidia-cuda-nvrtc", "nvidia-cuda-nvcc-cu12", "nvidia-nvjitlink-cu12", "nvidia-cuda-nvrtc-cu12",
)  # fmt: skip


@dataclass(frozen=True)
class Use:
    """One kernel that this process has loaded or compiled, for one list of argument types."""

    kernel: str
    types: str
    loaded: bool  # from disk; otherwise compiled
    seconds: float


uses = []  # of this process, in order: they show where the time went
problems = []  # as text: why kernels could not be loaded or stored
_digests_at_start = {}  # file -> digest of its contents before any kernel was decorated: never newer than the code that Python runs


class NotCacheable(Exception):
    """No other process could tell whether its kernel is the same."""


def directory():
    """Where the kernels are stored: gpt2_numba/kernels in XDG_CACHE_HOME, by default ~/.cache."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(chosen) if os.path.isabs(chosen) else Path.home() / ".cache") / PACKAGE / "kernels"


def source_files(module):
    """The files from which a kernel of `module` (a dotted name) can be made: integers.py, those of gpu/, and those of its layer, if any.

    A kernel of layers/fast/NAME may also import constants from layers/NAME; never the other way round.
    """
    files = [ROOT / "integers.py", *sorted((ROOT / "gpu").rglob("*.py"))]
    _, package, *rest = module.split(".")
    if package == "layers":
        is_fast = rest[0] == "fast"
        layer = rest[is_fast]
        for folder in ("layers", "layers/fast")[: 1 + is_fast]:
            files += [*(ROOT / folder).glob(f"{layer}.py"), *sorted((ROOT / folder / layer).rglob("*.py"))]
    return files


def kernel_name(function):
    """FILE.FUNCTION, such as layernorm.layernorm_backward_kernel; fast.FILE.FUNCTION for a kernel of layers/fast."""
    _, _, *rest = function.__module__.split(".")
    return ".".join([*(["fast"] if rest[:1] == ["fast"] else []), *rest[-1:], function.__name__])


def file_digests(files):
    """File -> digest of its contents on disk now."""
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def sources():
    """A digest of all files from which any kernel can be made, as text."""
    return hashlib.sha256(
        repr(sorted((path.relative_to(ROOT).as_posix(), digest) for path, digest in _digests_at_start.items())).encode()
    ).hexdigest()


@functools.cache
def versions():
    """The versions of compiler and driver, as text."""
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
    """Text for a value from a closure, the same in every process. Raises NotCacheable for other kinds of values."""
    if value is None or isinstance(value, (bool, int, float, str, bytes, np.generic, np.dtype)):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(describe, value))})"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, (ModuleType, BuiltinFunctionType)):
        return value.__name__
    function = getattr(value, "py_func", getattr(value, "_defn", value))  # a device function's or an intrinsic's Python function
    if isinstance(function, FunctionType):
        return describe_function(function)
    if hasattr(value, "cast_python_value"):  # a type such as numba.float32
        return str(value)
    raise NotCacheable(f"a {type(value).__name__}")


def describe_function(function):
    """Text for a function: its module, name and line, and the values of its closure."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or ())
    closure = ", ".join(f"{name} = {describe(cell.cell_contents)}" for name, cell in cells)
    return f"{function.__module__}.{function.__qualname__}, line {function.__code__.co_firstlineno}, with ({closure})"


class KernelCache:
    """The files of one kernel. Numba's dispatcher calls load_overload before it compiles and save_overload afterwards."""

    def __init__(self, dispatcher):
        self.function, self.options = dispatcher.py_func, dispatcher.targetoptions
        self.name = kernel_name(self.function)
        self.sources = source_files(self.function.__module__)
        self.started = 0.0

    @property
    def cache_path(self):
        return str(directory())

    def path(self, argument_types):
        """The file for these argument types on the GPU in use. Raises NotCacheable."""
        from numba.cuda import dispatcher

        if self.options.get("link") or self.options.get("extensions"):
            raise NotCacheable("a kernel linked with other code")
        dependencies = [
            *(f"{path.relative_to(ROOT).as_posix()} {_digests_at_start[path]}" for path in self.sources),
            versions(),
            describe_function(self.function),
            *(f"{option} = {describe(value)}" for option, value in sorted(self.options.items())),
            *(str(argument_type) for argument_type in argument_types),
            f"compute capability {tuple(dispatcher.get_current_device().compute_capability)}",
        ]
        digest = hashlib.sha256("\n".join(dependencies).encode()).hexdigest()
        return directory() / f"{self.name}-{digest[:32]}{SUFFIX}"

    def load_overload(self, argument_types, target_context):
        """The kernel, bound to the GPU; None if it is not in the cache or cannot be used, and must be compiled.

        While another process is compiling it, this one waits. Otherwise this process is to compile it (save_overload).
        """
        self.started = time.perf_counter()
        try:
            path = self.path(argument_types)
        except Exception as error:
            return self.failed(error)
        if not os.path.exists(path):
            claims.claim(path)
        kernel = self.read(path)  # another process may have stored it meanwhile
        if kernel is not None:
            claims.release(path)
            self.note(argument_types, loaded=True)
        return kernel

    def read(self, path):
        """The kernel in a file, bound to the GPU; None if it cannot be used."""
        try:
            stored = path.read_bytes()
            digest, contents = stored[:32], stored[32:]
            if hashlib.sha256(contents).digest() != digest:
                raise ValueError("damaged")
            kernel = deserialize(contents)
            os.utime(path)  # marks it as recently used
        except FileNotFoundError:
            return None
        except Exception as error:
            return self.failed(error)
        return kernel

    def failed(self, error):
        """Note why a kernel could not be loaded or stored: from the file system, from pickle, from a Numba with other internals."""
        problems.append(f"{self.name}: {type(error).__name__}: {error}")

    def save_overload(self, argument_types, kernel):
        """Store a compiled kernel. If that fails, the run continues without."""
        self.note(argument_types, loaded=False)
        path = None
        try:
            path = self.path(argument_types)
            changed = [path for path, digest in file_digests(self.sources).items() if digest != _digests_at_start[path]]
            if changed:
                raise NotCacheable(f"{changed[0]} has changed since this process started")
            contents = serialize(kernel)
            write(path, hashlib.sha256(contents).digest() + contents)
            delete_unused()
        except Exception as error:
            self.failed(error)
        finally:
            claims.release(path)

    def note(self, argument_types, loaded):
        uses.append(Use(self.name, ", ".join(map(str, argument_types)), loaded, time.perf_counter() - self.started))

    def flush(self):
        """Delete all files of this kernel, for any types. Numba calls it before it recompiles."""
        for path in directory().glob(f"{self.name}-*{SUFFIX}"):
            path.unlink(missing_ok=True)


def serialize(kernel):
    """A compiled kernel as bytes."""
    from numba.cuda.serialize import dumps

    if kernel.launch_config_sensitive:
        raise NotCacheable("a kernel compiled for one launch configuration")
    return dumps(kernel._reduce_states())


def deserialize(contents):
    """The kernel that was serialized, bound to the GPU."""
    from numba.cuda.dispatcher import _Kernel

    kernel = _Kernel._rebuild(**pickle.loads(contents))
    kernel.bind()  # now, while a kernel that the driver rejects can still be compiled
    return kernel


def write(path, contents):
    """Write a file such that no process ever sees it incomplete."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".unfinished")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(contents)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def files():
    """All stored kernels: (time of last use, bytes, path), most recently used first."""
    found = []
    for path in directory().glob(f"*{SUFFIX}"):
        try:
            found.append((path.stat().st_mtime, path.stat().st_size, path))
        except OSError:  # another process has just deleted it
            continue
    return sorted(found, reverse=True)


@functools.cache
def delete_unused():
    """Delete the least recently used kernels beyond KEPT_BYTES, and abandoned files. Once per process."""
    kept = 0
    try:
        for _, size, path in files():
            kept += size
            if kept > KEPT_BYTES:
                path.unlink(missing_ok=True)
        for suffix, age in ((".unfinished", ABANDONED_AFTER), (claims.SUFFIX, ABANDONED_AFTER), (LIST_SUFFIX, UNUSED_AFTER)):
            for path in directory().glob(f"*{suffix}"):
                if time.time() - path.stat().st_mtime > age:
                    path.unlink(missing_ok=True)
    except OSError:
        pass


def install():
    """From now on `cache=True` uses this cache for kernels of gpu/ and layers/; all other kernels keep Numba's."""
    from numba.cuda.dispatcher import CUDADispatcher

    sources = [ROOT / "integers.py", *(path for package in ("gpu", "layers") for path in (ROOT / package).rglob("*.py"))]
    _digests_at_start.update(file_digests(sources))
    numba_enable_caching = CUDADispatcher.enable_caching

    def enable_caching(dispatcher):
        if dispatcher.py_func.__module__.startswith((f"{PACKAGE}.gpu.", f"{PACKAGE}.layers.")):
            dispatcher._cache = KernelCache(dispatcher)
        else:
            numba_enable_caching(dispatcher)

    CUDADispatcher.enable_caching = enable_caching
