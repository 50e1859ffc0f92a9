"""The models of a repository in one process, without a server: for tests, notebooks and batch."""

from attune_ensemble.serving.local.models import LocalModels

__all__ = ["LocalModels"]
