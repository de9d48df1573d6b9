"""Repairs what rounding broke: stages that take a `Settled` and return a better one.

`run.correct` runs those that a recipe lists, in its order. A stage sees the calibration samples,
the float network and the simulation of what will be deployed; what it may change is the float
module (equalisation, biases), the grids of activations, and the integers and scales of weights.
"""
