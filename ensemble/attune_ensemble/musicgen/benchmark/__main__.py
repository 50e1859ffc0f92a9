"""`python -m attune_ensemble.musicgen.benchmark`: what `attune bench music` does, where only torch is installed."""

import sys

from attune_ensemble.musicgen.benchmark.main import main

sys.exit(main())
