"""Text as tokens, and tokens as batches.

What training reads is here:

tokenizers       text to token ids and back: bytes (257 ids) or GPT-2's byte-pair encoding (50,257 ids)
token_shards     llm.c's token files: a header of 256 int32 (file_header), then uint16 tokens
tokenizer_record the tokenizer that made a set of shards, beside them
shard_check      all tokens are checked, at the start or while the first steps run
builtin_corpus   text that comes with Python, so that training needs no network
loader           shards to batches (B, T) of inputs and targets, in llm.c's order; loader_state: where it is in them
prefetch         a thread reads the next batch while the current step runs
arriving_shards  shards that are waited for while they are downloaded; manifest: the list of them that comes first
regular_files    files are opened here, and what is no file is refused
disk_space       room for what is going to be written: shards, downloads, a plan's checkpoints

What a model is asked, and where the files come from, in rooms of their own; nothing above needs them, and each may import those above it:

evaluation/      questions such as HellaSwag's, and texts: files, batches and scores
making/          text to token shards
fetching/        shards, text and questions from the network
sources          the named sources of both
__main__         python -m gpt2_numba.data, the command that makes these files
"""
