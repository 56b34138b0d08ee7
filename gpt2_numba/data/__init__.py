"""Text as tokens, and tokens as batches.

tokenizers       text to token ids and back: bytes (257 ids) or GPT-2's byte pairs (50,257 ids)
token_shards     the token files of llm.c: a header of 256 int32, then uint16 tokens
builtin_corpus   text that every Python carries, so that training needs no network
loader           shards to batches (B, T) of inputs and targets, in llm.c's order
prefetch         the next batch read by a thread while the current step runs
multiple_choice  evaluations such as HellaSwag: files, batches and score
"""
