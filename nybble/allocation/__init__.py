"""Which width every layer gets: a choice per layer, the least loss within the budgets.

`allocate` and `pareto` work on plain data and know nothing of networks. `problem` turns what the
user gave into arrays, one file a solver turns those into a choice.
"""
