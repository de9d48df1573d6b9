"""A quantized network written for other runtimes."""
