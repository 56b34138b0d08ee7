"""Text as tokens, and tokens as batches.

tokenizers       text to token ids and back: bytes (257 ids) or GPT-2's byte-pair encoding (50,257 ids)
token_shards     llm.c's token files: a header of 256 int32, then uint16 tokens
shard_check      all tokens are checked, at the start or while the first steps run
builtin_corpus   text that comes with Python, so that training needs no network
loader           shards to batches (B, T) of inputs and targets, in llm.c's order
prefetch         a thread reads the next batch while the current step runs
arriving_shards  shards that are waited for while they are downloaded
multiple_choice  evaluations such as HellaSwag: files, batches and score
tokenizer_record the tokenizer that made a set of shards, beside them

python -m gpt2_numba.data makes these files. From text:

sources          the named sources; python_sources: the Python sources on this machine
text_parts       files of any size as units of work: where documents begin, where a long one may be cut
tokenizing       units to tokens, in several processes
shard_making     which tokens are for validation; going on after a break
shard_writer     the files on the disk, from the first token to the last name
training_command the command that is printed at the end

What it fetches from a network:

download         one file by HTTP, whole and checked, however bad the network is
hub              what is on the Hugging Face hub
hub_sources      the data sets that have a name
shard_download   token shards in the order in which a run needs them; manifest: the list of them that comes first
questions        rows of HellaSwag or MMLU as an evaluation file
"""
