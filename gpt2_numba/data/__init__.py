"""Text as tokens, and tokens as batches.

tokenizers       text to token ids and back: bytes (257 ids) or GPT-2's byte-pair encoding (50,257 ids)
token_shards     llm.c's token files: a header of 256 int32, then uint16 tokens
shard_check      all tokens are checked, at the start or while the first steps run
builtin_corpus   text that comes with Python, so that training needs no network
loader           shards to batches (B, T) of inputs and targets, in llm.c's order
prefetch         a thread reads the next batch while the current step runs
multiple_choice  evaluations such as HellaSwag: files, batches and score
"""
