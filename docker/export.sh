#!/bin/sh
# Exports the models into /models, a volume say; what is there already and whole is left alone. Arguments are those of
# `attune export`. It needs a package index, once.
set -eu

# The packaged server is in the image, the cache of weights is not.
server=/opt/attune/cache/attune/weights/tritonserver
if [ -d "$server" ]; then
	mkdir -p "$XDG_CACHE_HOME/attune/weights"
	ln -sfn "$server" "$XDG_CACHE_HOME/attune/weights/tritonserver"
fi
cp -r /configurations/. /models
exec attune export --repository /models "$@"
