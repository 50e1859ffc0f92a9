"""The rows of `attune chaos`, in a module by subject; `attune_ensemble.chaos` says how one is written."""
