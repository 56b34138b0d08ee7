"""Scripts that make data files: token shards from text, HellaSwag's evaluation file, a debug state from PyTorch."""
