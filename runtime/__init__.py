"""Artifacts: write, load, run, profile. Loading needs the TVM runtime alone."""
