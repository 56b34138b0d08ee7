"""Text to token shards, from the file to the command that trains on them. What calls what, from the top:

shard_making     the whole job: which tokens are for validation, going on after a break
  text_parts     files of any size as units of work: where documents begin, where a long one may be cut
  tokenizing     units to tokens, in several processes
  shard_writer   the files on the disk, from the first token to the last name
  training_command  the command that is printed at the end

source           what a named source is; two of them need no network and give parts of text:
  python_sources the Python sources on this machine
  builtin_text   the built-in corpus
"""
