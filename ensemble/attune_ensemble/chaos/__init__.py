"""`attune chaos`: a black box test of `attune serve`, which is killed, paused, overloaded and lied to.

It drives the server by what everybody has: its command line, ports, events, signals, and what the system shows of its
processes. `harness` has what all rows share; `rows` has the rows, in a module by subject; `catalogue` lists them.

A row is a function that takes a `Case` (`harness.case`), with its name, its sentence and its limits around it:

    def kill_the_encoder(case: Case) -> None:
        server = case.server()                                   # shared with other rows; ready, and served before
        with case.load(server, [Prompt(), Play(seconds=1)]):     # four threads that go on asking, each call judged
            server.kill_stub("sentence_encoder")
            case.recovers(server, Prompt(), within_s=10)         # asks until it is answered again; a bar
        case.expect(server.events("model_recovered"), "no event told of the recovery")

    ROWS = (Row("kill-encoder", "kill -9 of the sentence encoder under load", kill_the_encoder, limit_s=60),)

and `catalogue.MODULES` names the module. Nothing else is to be done: the row is then one of `attune chaos`, and a test
of tests/integration/test_chaos.py; with `quick_limit_s` it is also one of `--quick` and of every test run, and may ask
`case.quick` whether to do less.

- Every call goes through the harness (`case.ask`, `case.at_once`, `case.load`, `Swarm`), which judges how it ended:
  answered, a clean `AttuneError`, lost (an end without either, or with a message that shows the server's inside), or
  hung (nobody told anything until the client's own patience ended). One lost or hung call fails the row. A call that
  a row makes by other means is put down by `case.tally.add(Ended(...))`.
- What else must hold is told by `case.expect(holds, otherwise)`: the row goes on, and has failed. `case.require` ends
  it at once. `case.note(text)` is for what is worth reading, and `raise Skipped(why)` for what cannot be tried here.
- `case.server()` is shared and must still serve afterwards: the harness asks it after each row. What ends a server, or
  needs options of its own, takes `case.fresh_server(...)`, which the harness ends, and looks for what it left behind.
- `with case.unchanged(server):` says that no process of the server may end or be replaced meanwhile.
- A row that cannot fail is worth nothing: tests/unit/test_chaos.py has a server that loses and hangs calls.
"""
