"""How many parameters does GPT-2 have?

Return the number of numbers in its 16 tensors (chapter 01, section 10), as a formula of L, C, V and T: the blocks, the channels, the
vocabulary, the longest sequence. Count one block first: two LayerNorms, and four linear layers with their biases. All are integers; nothing
is given but the shapes in the chapter.

    python -m tutorials.check 01_count_parameters
"""


def count_parameters(L, C, V, T):
    """The number of parameters, an integer."""
    # your lines:
    # end of your lines
