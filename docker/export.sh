#!/bin/sh
# Exports the models into /models, a volume say, and leaves one alone that holds a whole export already. Arguments are
# those of `attune export`. It needs a package index, once.
set -eu

cp -r /configurations/. /models
exec attune export --repository /models "$@"
