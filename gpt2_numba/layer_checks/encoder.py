"""Token and position embeddings: forward is one addition, backward a sum over all positions of a token."""

import numpy as np

from gpt2_numba.layer_checks.calls import Call, changed, read, scratch, textbook_call, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layer_checks.sizes import awkward_tokens
from gpt2_numba.layer_checks.tolerances import summation_error
from gpt2_numba.layers import encoder as textbook
from gpt2_numba.layers.fast import encoder as fast

MORE_POSITIONS = 3  # rows of wpe beyond the last position of the batch


def reference_rows(s, normal):
    """Yield Rows that check the NumPy reference against central differences."""
    tokens = awkward_tokens(s)
    wte, wpe, dout = normal((s.Vp, s.C)), normal((s.T + 2, s.C)), normal((s.N, s.C))
    out, dwte, dwpe = np.full(dout.shape, np.nan), normal(wte.shape), normal(wpe.shape)
    before = dwte.copy(), dwpe.copy()
    textbook.encoder_backward(dwte, dwpe, dout, tokens)
    gradients = {"dwte": (wte, before[0], dwte), "dwpe": (wpe, before[1], dwpe)}
    yield from check_gradients("encoder", lambda: textbook.encoder_forward(out, tokens, wte, wpe), out, dout, gradients)


def forward_tensors(s, normal):
    """The arguments of encoder_forward, shared by both sets of kernels."""
    return dict(
        out=written(s.N, s.C),
        tokens=read(awkward_tokens(s), "i32"),
        wte=read(normal(s.Vp, s.C)),
        wpe=read(normal(s.T + MORE_POSITIONS, s.C)),
    )


def backward_errors(after, before, storage, s):
    """Bounds for dwte and dwpe by row, from the number of terms and an upper bound on the sum of their squares in any column."""
    tokens = awkward_tokens(s)
    counts = np.zeros((s.Vp, 1))
    counts[: s.V, 0] = np.bincount(tokens.reshape(-1), minlength=s.V)
    positions = np.arange(s.T + MORE_POSITIONS)
    terms = {"dwte": counts, "dwpe": np.where(positions < s.T, s.B, 0)[:, None]}  # rows without a term have no error
    squares = {name: np.square(getattr(before, name)).max(axis=1, keepdims=True) for name in terms}
    textbook.encoder_backward(squares["dwte"], squares["dwpe"], np.square(after.dout).max(axis=1, keepdims=True), tokens)
    return {name: np.where(n > 0, np.sqrt(n + 1) * summation_error(1, np.sqrt(squares[name])), 0) for name, n in terms.items()}


def plain_calls(s, normal, functions):
    """Yield the Calls of the textbook functions in the namespace `functions`, each with its error bounds."""
    yield textbook_call(
        functions, textbook, "encoder_forward", forward_tensors(s, normal), lambda a: (a.out, a.tokens, a.wte, a.wpe),
    )  # fmt: skip
    yield textbook_call(
        functions, textbook, "encoder_backward",
        dict(dwte=changed(normal(s.Vp, s.C)), dwpe=changed(normal(s.T + MORE_POSITIONS, s.C)), dout=read(normal(s.N, s.C)),
             tokens=read(awkward_tokens(s), "i32")),
        lambda a: (a.dwte, a.dwpe, a.dout, a.tokens),
        lambda after, before, storage: backward_errors(after, before, storage, s),
    )  # fmt: skip


def fast_calls(s, normal, storage):
    """Yield the Calls of the fast launchers, each with its error bounds."""
    yield Call(
        "encoder_forward",
        "encoder forward",
        forward_tensors(s, normal),
        lambda a: fast.encoder_forward(a.out, a.tokens, a.wte, a.wpe),
        reference=lambda a: textbook.encoder_forward(a.out, a.tokens, a.wte, a.wpe),
    )
    tokens = awkward_tokens(s)
    places, pieces = fast.places_by_token(tokens, s.V)
    yield Call(
        "encoder_backward",
        "encoder backward",
        dict(dwte=changed(normal(s.Vp, s.C)), dwpe=changed(normal(s.T + MORE_POSITIONS, s.C)), dout=read(normal(s.N, s.C)),
             places=read(places, "i32"), pieces=read(pieces, "i32"), scratch=scratch(fast.encoder_scratch_size(s.N, s.C), kind="f32")),
        lambda a: fast.encoder_backward(a.dwte, a.dwpe, a.dout, a.places, a.pieces, a.scratch, s.T),
        lambda after, before, storage: backward_errors(after, before, storage, s),
        lambda a: textbook.encoder_backward(a.dwte, a.dwpe, a.dout, tokens),
    )  # fmt: skip
