"""01_count_parameters: the shapes of all tensors, as one formula."""

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise


def count(L, C, V, T):
    return V * C + T * C + L * (12 * C * C + 13 * C) + 2 * C


EXERCISE = host_exercise(
    function="count_parameters",
    arguments=lambda random, L, C, V, T: {"L": L, "C": C, "V": V, "T": T},
    reference=lambda L, C, V, T: {"return": count(L, C, V, T)},
    sizes=({"L": 1, "C": 3, "V": 5, "T": 7}, {"L": 2, "C": 64, "V": 257, "T": 32}, {"L": 12, "C": 768, "V": 50257, "T": 1024}),
    tolerance=0,
    hints={
        "": (
            "A block has 12 C² numbers in its four matrices: 3C × C, C × C, 4C × C, C × 4C. And how many in its biases and LayerNorms?",
            "Its biases: 3C, C, 4C, C. Its LayerNorms: a weight and a bias of C numbers each, twice. Outside of the blocks: wte, wpe, lnfw, lnfb.",
        ),
    },
    mistakes=(
        Mistake(lambda L, C, V, T: {"return": count(L, C, V, T) + V * C}, "wte counts once: the output layer has no matrix of its own."),
        Mistake(lambda L, C, V, T: {"return": count(L, C, V, T) - 2 * C}, "The last LayerNorm, behind the blocks, is missing."),
        Mistake(lambda L, C, V, T: {"return": count(L, C, V, T) - 4 * C * L}, "The two LayerNorms of each block are missing."),
        Mistake(lambda L, C, V, T: {"return": count(L, C, V, T) - 9 * C * L}, "The biases of the four linear layers are missing."),
        Mistake(lambda L, C, V, T: {"return": count(L, C, V, T) - T * C}, "The table of the positions, wpe, is missing."),
    ),
    wrong=(
        Wrong("an output layer of its own", {"return V * C": "return 2 * V * C"}, "value", "wte counts once"),
        Wrong("no last LayerNorm", {" + 2 * C\n": "\n"}, "value", "last LayerNorm"),
        Wrong("no LayerNorms", {"4 * C + (3": "(3"}, "value", "two LayerNorms"),
        Wrong("no biases", {" * C + 3 * C + C + 4 * C + C\n": " * C\n"}, "value", "biases"),
        Wrong("no positions", {" + T * C": ""}, "value", "wpe"),
        Wrong("the number of GPT-2 124M", {"return V * C + T * C + L * block + 2 * C": "return 124439808"}, "value", "12 C²"),
        Wrong("printed, not returned", {"return V * C": "result = V * C"}, "not written"),
    ),
)
