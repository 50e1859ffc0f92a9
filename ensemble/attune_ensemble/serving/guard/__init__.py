"""The guard: the only gRPC port that clients reach, in front of a tritonserver that nobody else may speak to.

    guard = Guard("127.0.0.1:8001", GuardSettings(), tell)
    guard.start()                       # the port is ours; every call is told that the server starts
    guard.open("unix:/run/attune/g:1")  # from now on calls are checked, admitted and forwarded
    ...
    guard.stop()

Triton 2.51 can be ended by one small request, leaves the callers of a dead model hanging, takes on whatever comes, and
keeps what a slow reader has not fetched. So each message is checked against what the models declare (`checks`), takes
one of a bounded number of places (`admission`), and is forwarded as it came (`forwarding`); the guard knows what is in
flight where, and ends it at once when a model or the server dies.
"""

from attune_ensemble.serving.guard.guard import Guard
from attune_ensemble.serving.guard.measures import METRICS
from attune_ensemble.serving.guard.settings import GuardSettings

__all__ = ["METRICS", "Guard", "GuardSettings"]
