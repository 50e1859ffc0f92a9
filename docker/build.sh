#!/bin/sh
# Builds an image, as this machine's own pip is set up: its indexes and certificates reach into the build as secrets,
# and the folders of wheels that it is told of by way of docker/wheels. Neither stays in the image.
#
#   docker/build.sh embedded|gpu [ARGUMENT OF docker build ...]
#   docker/build.sh embedded --tag attune:cpu --build-arg MODELS=context
#
# DOCKER names the docker to use. It has to have BuildKit: any since 23 with buildx, or an older one that brings it.
set -eu
cd "$(dirname "$0")/.."

dockerfile=docker/$1.Dockerfile
shift
docker=${DOCKER:-docker}
python=${PYTHON:-python3}

DOCKER_BUILDKIT=1 "$docker" build --help 2>/dev/null | grep -q -- --secret || {
	echo "$docker cannot build with BuildKit: it needs the component buildx (Debian's package docker.io has it built in)" >&2
	exit 69
}

secrets=$(mktemp -d)
wheels=
finish() {
	rm -rf "$secrets"
	[ -z "$wheels" ] || rm -f $wheels
}
trap finish EXIT
trap 'exit 130' INT TERM

configuration=$("$python" -m pip config list | sed -nE "s/^(global|:env:)\.\.?([a-z-]+)='(.*)'$/\2 = \3/p" | sed 's/\\n/ /g')
# What names a place of this machine means nothing in the build. Of a list only those entries are left out.
{
	echo "[global]"
	printf '%s\n' "$configuration" | grep -E '^(index-url|extra-index-url|trusted-host|proxy|timeout|default-timeout|retries) = ' |
		sed -E 's#file:[^ ]*##g; s/^default-//' | grep -vE '= *$' | sort -u -t= -k1,1 || true
} > "$secrets/pip.conf"
set -- --secret "id=pip_conf,src=$secrets/pip.conf" "$@"

certificates=${PIP_CERT:-${SSL_CERT_FILE:-$(printf '%s\n' "$configuration" | sed -n 's/^cert = //p' | head -n 1)}}
[ -z "$certificates" ] || set -- --secret "id=certificates,src=$certificates" "$@"

for folder in $(printf '%s\n' "$configuration" | sed -n 's/^find-links = //p' | tr ' ' '\n' | sort -u); do
	folder=${folder#file://}
	for wheel in "$folder"/*.whl; do
		target=docker/wheels/$(basename "$wheel")
		if [ -e "$wheel" ] && [ ! -e "$target" ]; then
			ln "$wheel" "$target" 2>/dev/null || cp "$wheel" "$target"
			wheels="$wheels $target"
		fi
	done
done

revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
created=$(git log -1 --format=%cI 2>/dev/null || echo 1970-01-01T00:00:00Z)  # of the sources: the same build, the same image
DOCKER_BUILDKIT=1 "$docker" build --file "$dockerfile" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
	--build-arg "CREATED=$created" "$@" .
