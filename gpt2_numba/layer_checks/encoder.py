"""Token and position embeddings: forward one addition, backward a sum over all places of a token."""

import numpy as np

from gpt2_numba.layer_checks.calls import Call, changed, read, scratch, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layer_checks.sizes import tokens_of
from gpt2_numba.layer_checks.tolerances import summation_error
from gpt2_numba.layers.encoder import encoder_backward, encoder_forward, encoder_scratch_size, places_by_token


def reference_rows(s, normal):
    """Rows of the NumPy reference against central differences or the definition."""
    tokens = tokens_of(s)
    wte, wpe, dout = normal((s.Vp, s.C)), normal((s.T + 2, s.C)), normal((s.N, s.C))
    out, dwte, dwpe = np.full(dout.shape, np.nan), normal(wte.shape), normal(wpe.shape)
    before = dwte.copy(), dwpe.copy()
    encoder_backward(dwte, dwpe, dout, *places_by_token(tokens, s.V), None, s.T)
    gradients = {"dwte": (wte, before[0], dwte), "dwpe": (wpe, before[1], dwpe)}
    yield from check_gradients("encoder", lambda: encoder_forward(out, tokens, wte, wpe), out, dout, gradients)


def kernel_calls(s, normal, storage):
    """Yield the Calls of this layer's launchers, each with the bounds of its errors."""
    tokens = tokens_of(s)
    max_T = s.T + 3
    yield Call(
        "encoder forward",
        dict(out=written(s.N, s.C), tokens=read(tokens, "i32"), wte=read(normal(s.Vp, s.C)), wpe=read(normal(max_T, s.C))),
        lambda a: encoder_forward(a.out, a.tokens, a.wte, a.wpe),
    )
    places, pieces = places_by_token(tokens, s.V)

    def errors(after, before, storage):
        # By rows: how many terms, and the largest sum of their squares in any column, or somewhat more.
        counts = np.zeros((s.Vp, 1))
        counts[: s.V, 0] = np.bincount(tokens.reshape(-1), minlength=s.V)
        terms = {"dwte": counts, "dwpe": np.where(np.arange(max_T) < s.T, s.B, 0)[:, None]}  # rows that get nothing: no error
        squares = {name: np.square(getattr(before, name)).max(axis=1, keepdims=True) for name in terms}
        encoder_backward(squares["dwte"], squares["dwpe"], np.square(after.dout).max(axis=1, keepdims=True), places, pieces, None, s.T)
        return {name: np.where(n > 0, np.sqrt(n + 1) * summation_error(1, np.sqrt(squares[name])), 0) for name, n in terms.items()}

    yield Call(
        "encoder backward",
        dict(dwte=changed(normal(s.Vp, s.C)), dwpe=changed(normal(max_T, s.C)), dout=read(normal(s.N, s.C)),
             places=read(places, "i32"), pieces=read(pieces, "i32"), scratch=scratch(encoder_scratch_size(s.N, s.C), kind="f32")),
        lambda a: encoder_backward(a.dwte, a.dwpe, a.dout, a.places, a.pieces, a.scratch, s.T),
        errors,
    )  # fmt: skip
