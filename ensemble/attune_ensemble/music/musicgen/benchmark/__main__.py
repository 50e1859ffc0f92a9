"""`python -m attune_ensemble.music.musicgen.benchmark`: `attune bench music` where only torch is installed."""

import sys

from attune_ensemble.music.musicgen.benchmark.main import main

sys.exit(main())
