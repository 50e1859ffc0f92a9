"""What the server costs beyond its models: `attune bench server-cost` and `attune bench instances`.

The load is that of `attune_client.bench.serving`, on a server and on the same models without one (`serving.local`).

    asking      one request to models in this process, timed as one to a server is
    idle        one request at a time, to this process and to the server in turn, and where the difference is
    full        as many as each of them can do, in rounds
    command     attune bench server-cost
    instances   attune bench instances: servers whose models are set otherwise
"""
