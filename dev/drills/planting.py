"""Faults planted in a training's own process: something happens before, or after, the n-th call of one of the trainer's functions."""

import functools
import importlib
import itertools
import os

from gpt2_numba.model import GPT2


def before_call(module, name, action, number=0):
    """Call action() before call number `number` (from 0) of a function that is looked up in its module when the trainer is imported."""
    owner = importlib.import_module(module)
    setattr(owner, name, _hooked(getattr(owner, name), number, before=lambda *_: action()))


def in_step(step, action):
    """Call action(model) within step number `step` (from 0): after its backward pass, before its update."""
    GPT2.measure = _hooked(GPT2.measure, step, before=action)


def before_step(step, action):
    """Call action(model) before the forward pass of step number `step` (from 0)."""
    GPT2.zero_grad = _hooked(GPT2.zero_grad, step, before=action)


def send_self(signum, times=1):
    """An action: this process gets a signal."""

    def send(*_):
        for _ in range(times):
            os.kill(os.getpid(), signum)

    return send


def _hooked(function, number, before):
    calls = itertools.count()

    @functools.wraps(function)
    def hooked(*args, **kwargs):
        if next(calls) == number:
            before(*args[:1])
        return function(*args, **kwargs)

    return hooked
