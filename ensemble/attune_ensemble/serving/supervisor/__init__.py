"""`attune serve`: keeps a server, the guard in front of it, and what tells of their health alive.

    with Supervisor(Path("model_repository"), ports=Ports(), log_file=Path("out/server.log")) as server:
        client = AttuneClient(server.grpc_url)

`policy` decides what is to be done when something has happened, and does nothing itself; `supervisor` looks, asks the
policy, and does it.
"""
