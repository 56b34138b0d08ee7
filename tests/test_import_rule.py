"""Imports point down only: train -> training -> model -> layers -> gpu. A layer can be read without the model; the package needs no tests.

The imports are read from the source, including those inside functions, so nothing has to be installed or run.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "gpt2_numba"
OUTSIDE = ("dev", "tutorials", "tests")  # the package never imports these

# What each part may import from the package, apart from its own modules: only parts listed above it. A part is a directory or a file.
PLAIN = {"errors", "integers", "config"}  # plain values, below everything
BELOW_THE_MODEL = {"layers", "gpu", "parallel", "kernel_sets", "options", "float8_memory", "memory_plan", "memory_fit"} | PLAIN
ALLOWED = {
    "errors": set(),
    "integers": set(),
    "config": {"errors", "integers"},
    "console": set(),
    "progress": set(),
    "command_line": {"console", "errors"},
    "cpu_cache": set(),
    "cpu_threads": {"integers"},
    "gpu": {"cpu_threads", "errors", "integers"},
    "layers": {"gpu", "cpu_cache", "cpu_threads", "errors", "integers"},
    "data": {"gpu", "progress", "command_line"} | PLAIN,
    "initial_weights": {"cpu_cache"} | PLAIN,
    "parallel": {"layers", "gpu"} | PLAIN,
    "huggingface": {"data", "progress"} | PLAIN,
    "kernel_sets": {"layers", "gpu", "errors"},
    "options": {"kernel_sets", "errors"},
    "layer_order": {"gpu"},
    "float8_memory": {"layers", "gpu", "config", "errors"},
    "fused_layer_order": {"layers", "gpu", "config"},
    "float8_layer_order": {"fused_layer_order", "float8_memory", "layers", "gpu"},
    "memory_plan": BELOW_THE_MODEL - {"memory_plan", "memory_fit"},
    "memory_fit": {"memory_plan", "gpu", "errors"},
    "model": {"layer_order", "fused_layer_order", "float8_layer_order"} | BELOW_THE_MODEL,
    "layer_checks": {"layers", "gpu"},
    "own_kernels": {"layer_checks", "gpu", "errors"},
    "inference": {"model", "layer_order", "fused_layer_order"} | BELOW_THE_MODEL,
    "training": {"inference", "model", "data", "huggingface", "initial_weights", "own_kernels", "console", "command_line"}
    | BELOW_THE_MODEL,
    "planning": {"training", "huggingface", "data", "command_line"} | BELOW_THE_MODEL,
    "plan": {"planning", "command_line"},
    "export": {"training", "huggingface", "data", "parallel", "gpu", "progress", "command_line", "config", "errors"},
    "named_model": {"training", "huggingface", "model", "options", "data", "gpu", "progress", "config", "errors"},
    "sample": {"named_model", "training", "inference", "data", "gpu", "command_line", "errors"},
    "plotting": {"training", "data", "progress", "command_line", "config", "errors"},
    "evaluation_model": {"inference", "memory_fit", "gpu", "errors"},
    "evaluate": {"named_model", "training", "evaluation_model", "data", "gpu", "progress", "command_line"} | PLAIN,
    "plot": {"plotting", "training", "command_line", "errors"},
    "train": {"training", "plot", "data", "parallel", "command_line", "config", "errors"},
    "replaying": {"training", "data", "parallel", "own_kernels", "layer_checks", "progress", "fused_layer_order"} | BELOW_THE_MODEL,
    "replay": {"replaying", "plotting", "training", "progress", "gpu", "command_line", "config"},
    "check_model": {"training", "model", "layer_checks", "data", "options", "gpu", "command_line", "config", "errors"},
    "machine_checks": {"memory_fit", "data", "parallel", "kernel_sets", "layers", "gpu", "cpu_cache"} | PLAIN,
    "doctor": {"machine_checks", "train", "training", "layer_checks", "gpu", "config", "command_line"},
    "": {"model", "options", "config", "errors", "console"},  # gpt2_numba/__init__.py
    "__main__": {"command_line", "errors"},
}

# The rooms of data/ and what each may import of the others. A file of data/ itself, which training reads, imports none of them ...
DATA_ROOMS = {"evaluation": set(), "making": set(), "fetching": {"evaluation", "making"}}
DATA_COMMAND = {"sources", "__main__"}  # ... except for the command that makes the files, which imports all, and which none imports


def source_files():
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path, source=None):
    """Dotted names that a file imports, relative ones made absolute. `from a import b` counts as a.b, which may be a module or not."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8") if source is None else source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__"):
            names.update(arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
    return names


def part_name(name):
    """gpt2_numba.layers.gelu.gelu_forward -> layers; None for names outside the package."""
    parts = name.split(".")
    return (parts[1] if len(parts) > 1 else "") if parts[0] == PACKAGE else None


def layer_and_set(name):
    """gpt2_numba.layers.fast.attention.mma -> (attention, fast). A layer may be a file, or a package of files that import each other."""
    _, _, *rest = [*name.split("."), "", ""]
    is_fast = rest[0] == "fast"
    return rest[is_fast], is_fast


def data_room(name):
    """gpt2_numba.data.making.source -> making; "command" for a file of DATA_COMMAND, "" for any other file of data/ itself."""
    room = [*name.split("."), "", ""][2]
    return room if room in DATA_ROOMS else "command" if room in DATA_COMMAND else ""


def faults(path, source=None):
    """The forbidden imports of a file, as text."""
    name = module_name(path)
    part = part_name(name)
    found = []
    for imported in sorted(imported_names(path, source)):
        other = part_name(imported)
        if imported.split(".")[0] in OUTSIDE:
            found.append(f"{name} imports {imported}: the package must not need {', '.join(OUTSIDE)}")
        elif other is None:
            continue
        elif other != part and other not in ALLOWED[part]:
            found.append(f"{name} imports {imported}: {part} may import {', '.join(sorted(ALLOWED[part])) or 'nothing'} only")
        elif part == other == "layers":
            (layer, is_fast), (other_layer, other_is_fast) = layer_and_set(name), layer_and_set(imported)
            if layer != other_layer:
                found.append(f"{name} imports {imported}: layers do not import each other")
            elif other_is_fast and not is_fast:
                found.append(f"{name} imports {imported}: a layer's own file must not need its fast kernels")
        elif part == other == "data" and data_room(name) != "command":
            room, other_room = data_room(name), data_room(imported)
            if other_room and other_room not in {room} | DATA_ROOMS.get(room, set()):
                found.append(f"{name} imports {imported}: data/{room} must not need data/{other_room}")
    return found


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_imports_point_down(path):
    assert faults(path) == []


def test_every_part_is_in_the_rule():
    assert {part_name(module_name(path)) for path in source_files()} == set(ALLOWED)


def test_parts_allow_only_parts_listed_above_them():
    order = list(ALLOWED)
    assert [(part, below) for part in order for below in ALLOWED[part] if order.index(below) >= order.index(part)] == []


@pytest.mark.parametrize(
    "file, source",
    [
        ("layers/gelu.py", "from gpt2_numba.layers.matmul import matmul_forward"),
        ("layers/gelu.py", "from .matmul import matmul_forward"),
        ("layers/gelu.py", "from . import matmul"),
        ("layers/gelu.py", "from gpt2_numba.layers.attention import on_cpu"),
        ("layers/gelu.py", "from gpt2_numba.layers.fast.gelu import THREADS"),
        ("layers/gelu.py", "from .fast import gelu"),
        ("layers/gelu.py", "from gpt2_numba.layers.fast import residual"),
        ("layers/attention/on_cpu.py", "from gpt2_numba.layers.gelu import gelu_forward"),
        ("layers/fast/gelu.py", "from gpt2_numba.layers.residual import residual_forward"),
        ("layers/fast/gelu.py", "from . import residual"),
        ("layers/fast/attention/mma.py", "from gpt2_numba.layers.fast.gelu import gelu_forward"),
        ("layers/fast/attention/mma.py", "from .. import gelu"),
        ("layers/gelu.py", "import gpt2_numba.model"),
        ("layers/gelu.py", "def f():\n    from gpt2_numba import config"),
        ("layers/gelu.py", "from gpt2_numba.data import loader"),
        ("gpu/gemm.py", "from ..layers import gelu"),
        ("gpu/gemm.py", "from gpt2_numba.model import GPT2"),
        ("data/loader.py", "from gpt2_numba.model import GPT2"),
        ("data/loader.py", "import importlib\nimportlib.import_module('gpt2_numba.layers.gelu')"),
        ("data/loader.py", "from gpt2_numba.data.making.text_parts import Part"),
        ("data/loader.py", "from .fetching import hub"),
        ("data/making/source.py", "from gpt2_numba.data.fetching.hub import Fetch"),
        ("data/making/source.py", "from ..evaluation import questions"),
        ("data/fetching/hub_sources.py", "from gpt2_numba.data.sources import sources"),
        ("training/log.py", "from gpt2_numba.plot import plot_losses"),
        ("layer_checks/sizes.py", "from gpt2_numba.config import GPT2Config"),
        ("plot.py", "from gpt2_numba.train import main"),
        ("training/log.py", "from gpt2_numba.train import main"),
        ("data/loader.py", "from gpt2_numba.training.log import MainLog"),
        ("model.py", "from gpt2_numba.data.loader import DataLoader"),
        ("model.py", "from gpt2_numba import train"),
        ("plot.py", "from dev.data import make_debug_state"),
        ("plot.py", "import tests.oracle"),
        ("errors.py", "from gpt2_numba.config import GPT2Config"),
    ],
)
def test_the_rule_catches_forbidden_imports(file, source):
    assert len(faults(ROOT / PACKAGE / file, source)) == 1


@pytest.mark.parametrize(
    "file, source",
    [
        ("layers/gelu.py", "import numpy\nfrom gpt2_numba.gpu.gemm import gemm\nfrom gpt2_numba.errors import UserError"),
        ("layers/attention/__init__.py", "from gpt2_numba.layers.attention.on_cpu import attention_forward_on_cpu"),
        ("layers/fast/layernorm.py", "from gpt2_numba.layers.layernorm import EPS\nfrom ..layernorm import EPS"),
        ("layers/fast/attention/mma.py", "from gpt2_numba.layers.fast.attention.delta import compute_delta\nfrom . import delta"),
        ("layers/fast/attention/mma.py", "from gpt2_numba.layers.attention import HINT"),
        ("gpu/gemm.py", "from gpt2_numba.gpu.backend import SIMULATING\nfrom .backend import SIMULATING"),
        ("model.py", "from gpt2_numba.layers.gelu import gelu_forward"),
        ("data/loader.py", "from gpt2_numba.data.token_shards import read_shard\nfrom ..errors import UserError"),
        (
            "data/fetching/hub_sources.py",
            "from gpt2_numba.data.making.source import Source\nfrom gpt2_numba.data.evaluation import questions",
        ),
        ("data/sources.py", "from gpt2_numba.data.fetching.hub_sources import HUB_SOURCES"),
        ("plot.py", "from gpt2_numba.training.log import read_main_log\nimport development"),
    ],
)
def test_the_rule_allows_permitted_imports(file, source):
    assert faults(ROOT / PACKAGE / file, source) == []
