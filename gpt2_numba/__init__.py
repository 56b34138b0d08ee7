"""GPT-2 training written from scratch in Numba-CUDA, after llm.c: every layer a readable pair of kernels, forward and backward.

    python -m gpt2_numba        lists the commands; python -m gpt2_numba.train trains

A model in a program of one's own (model.py says what it can do):

    from gpt2_numba import GPT2, Options, draw_initial_weights, parameter_shapes, parse_descriptor

    config = parse_descriptor("L=2,NH=2,C=32,T=64,V=257")
    model = GPT2(config, B=4, T=64, options=Options(device="cpu"))
    model.load_pieces(draw_initial_weights(config, parameter_shapes(config)))

To read the code, start with train.py, or with layers/__init__.py; docs/architecture.md is the map.
"""

import importlib
import sys

if sys.argv[:1] == ["-m"]:  # Python imports the package in order to run one of its programs: `python -m gpt2_numba.train`
    from gpt2_numba.console import end_at_ctrl_c

    end_at_ctrl_c()

_HOMES = {
    "GPT2": "model",
    "Options": "options",
    "GPT2Config": "config",
    "parse_descriptor": "config",
    "parameter_shapes": "config",
    "draw_initial_weights": "initial_weights",
    "DataLoader": "data.loader",
    "UserError": "errors",
}
__all__ = list(_HOMES)


def __getattr__(name):
    """A public name, imported when it is first used: Numba must not be imported before the choice between a GPU and the simulator."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"gpt2_numba.{_HOMES[name]}"), name)
