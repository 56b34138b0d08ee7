"""Before the first step of a run that is to write checkpoints: whatever it will be asked for later is tried once.

A run that cannot write its first checkpoint, print its first sample or answer its first question should end now, not after a night. Nothing
is left behind: files are removed, and of the model only activations are overwritten, which the next forward pass computes anyway.
"""

import time
from types import SimpleNamespace

from gpt2_numba.data.evaluation.answers import Answers
from gpt2_numba.errors import SharedError
from gpt2_numba.parallel.agreement import together
from gpt2_numba.training.checkpoint import CheckpointFailed
from gpt2_numba.training.evaluation import sample
from gpt2_numba.training.resume import rehearse_save

TOKENS = 2  # of a sample: the first is read in another way than the others
_NEVER = SimpleNamespace(requested=None)  # in the place of a StopRequest


def rehearsed(run):
    """Return the PreparedRun, after a rehearsal if it writes checkpoints (-n and -o). All processes call it.

    Raises SharedError, in all of them, if something is not possible.
    """
    settings, model = run.settings, run.model
    if not settings.checkpoint_every or not settings.log_dir:
        return run
    begin, done = time.monotonic(), ["a checkpoint"]
    model.group.doing("rehearsing a checkpoint")
    try:
        rehearse_save(settings.log_dir, run.first_step, model, run.train_loader.state(), run.run_state)
    except CheckpointFailed as error:
        raise SharedError(str(error)) from error
    if settings.sample_every:
        together(model.group, lambda: _rehearse_sample(run))
        done.append("a sample")
    if run.questions is not None:
        together(model.group, lambda: _rehearse_questions(run))
        done.append("questions")
    model.synchronize()
    print(f"rehearsed {' and '.join(', '.join(done).rsplit(', ', 1))} in {time.monotonic() - begin:.1f} s")
    return run


def _rehearse_sample(run):
    if run.model.group.rank == 0:
        sample(run.model, run.encoding, min(TOKENS, run.settings.sample_tokens), _NEVER)


def _rehearse_questions(run):
    """Answer the questions of the first batch."""
    model, answers = run.model, Answers(run.questions)
    for batch in answers.batches(model.B * model.T, model.T):
        model.evaluate(batch.inputs, batch.targets)
        answers.add(batch.rows, model.losses_to_host())
        break
    model.discard_losses()
