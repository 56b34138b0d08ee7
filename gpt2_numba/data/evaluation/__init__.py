"""What a model is measured on besides its validation loss, by the trainer (-h) and by `python -m gpt2_numba.evaluate`.

multiple_choice  HellaSwag and its like: llm.c's file format, and the score
questions        rows of HellaSwag or MMLU, as they are published, to such a file; fetching/ calls it
answers          the losses of all endings, and the three rules by which an ending is chosen
rows_by_length   many short texts in batches with few padded tokens; answers uses it
text_windows     a long text in windows of T tokens, its loss per token and its bits per byte
"""
