"""Three multiple-choice questions, in bytes, that fit the small training's rows."""

import numpy as np

from gpt2_numba.data.evaluation.multiple_choice import Example, write_examples


def write_questions(path):
    """Write them as an evaluation file."""
    endings = [np.array(list(b"ab"), np.uint16), np.array(list(b"cde"), np.uint16)]
    write_examples(path, [Example(label, np.array(list(b"xyz"), np.uint16), endings) for label in (0, 1, 1)])


def questions_as_json_lines():
    """The same as HellaSwag's JSON lines, bytes."""
    return b"".join(b'{"ctx": "xyz", "label": %d, "endings": ["ab", "cde"]}\n' % label for label in (0, 1, 1))
