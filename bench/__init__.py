"""Benchmarks: each figure stands beside the limit that it can't beat, measured in the same run."""
