"""Benchmarks: what a kernel costs beside its floor and its opponents, measured in one process."""
