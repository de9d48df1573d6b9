"""Tuning: searches the knobs of every layer's kernels, measures, remembers what was best."""
