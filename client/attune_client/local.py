"""The client's methods for models in this process: same calls, same results, same errors, and no server.

from attune_client.local import LocalClient
from attune_ensemble.serving.local import LocalModels

with LocalModels("model_repository") as models:
    client = LocalClient(models)
    print(client.analyse("narration.wav").emotion)
"""
