"""Shards, text and questions from the network. What calls what, from the top:

hub_sources      the data sets that have a name, and how each is had
  shard_download token shards in the order in which a run needs them
  hub            what is on the Hugging Face hub, and downloads that go on while something else is done
    download     one file by HTTP, whole and checked, however bad the network is

Text that arrives is tokenized by making/, questions become a file by evaluation/. huggingface/ fetches models with the same two.
"""
