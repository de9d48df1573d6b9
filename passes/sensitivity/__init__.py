"""How much each layer loses at each width: five measures, one table.

`run.measured` prepares what all share and picks the measure: `forward` evaluates the network with
layers quantized, `hessian` takes derivatives, `columns` and `influence` look at layers one by one.
Every finished unit of work goes to a `journal`, so a killed run goes on where it stopped.
"""
