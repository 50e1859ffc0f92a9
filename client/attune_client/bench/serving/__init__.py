"""`attune bench serving` and `attune bench scaling`: load on a running server, and what each request then takes.

clips       the recordings
targets     the requests that are made of them, for each model
asking      one request, timed
load        many requests: a closed loop or an open one
statistics  what the server counts by itself, model by model
processor   processor time, of this process and of the server's
measuring   one load, with all of these around it
summary     percentiles, throughput, errors
report      the tables
plot        latency against load, drawn
"""
