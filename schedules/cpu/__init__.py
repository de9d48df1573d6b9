"""Kernel families for CPUs."""
