"""The memory and the quality of cache stores on a model and a text: what `tokops kv` measures."""
