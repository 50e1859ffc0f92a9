"""`attune bench encoders`: what recognising emotion from speech costs, from the paper's way to the cheapest.

A row is one way to answer the same clips; each has a process of its own (`worker`), and the processes are asked in turn
for one pass over the clips, so that noise affects all of them (`turns`). `towers` makes the regressors, `graphs` what
the rows run, `ways` declares the rows and `engines` runs them, `clips` and `batches` are what they run on, `rates`
measures matrix products, and `results` and `tables` say what came of it.
"""
