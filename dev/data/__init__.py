"""Scripts that make token shards: one for any text file, later one per dataset."""
