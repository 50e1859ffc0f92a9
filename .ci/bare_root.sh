#!/usr/bin/env bash
# `make run` on a bare Debian: Python, make and git, and nothing else. Needs root and the package debootstrap.
#
#   .ci/bare_root.sh FOLDER [SUITE]     # bookworm (Python 3.11), trixie (3.13); FOLDER is made, and kept for a second call
#
# First `make run` has to say within two seconds what to install; that is installed, and then it has to work. What
# this machine's pip is told (indexes, certificates, folders of wheels) holds inside as well.
set -euo pipefail
root=$(realpath -m "$1")
suite=${2:-bookworm}
cd "$(dirname "$0")/.."
packages=python3,python3-venv,make,git,ca-certificates

[ -e "$root/etc/debian_version" ] ||
	debootstrap --variant=minbase --include="$packages" "$suite" "$root"

mounted=()
bind() {
	[ -e "$1" ] || return 0
	if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$root$(dirname "$1")" && touch "$root$1"; fi
	mount --bind "$1" "$root$1"
	mounted+=("$root$1")
}
unmount() {
	for ((i = ${#mounted[@]} - 1; i >= 0; i--)); do umount "${mounted[i]}"; done
}
trap unmount EXIT

bind /proc
bind /dev
bind /dev/shm
cp /etc/resolv.conf /etc/hosts "$root/etc/"
for path in $(python3 -m pip config list | grep -oE "(file://)?/[^ ']+" | sed -e 's#^file://##' -e 's#/simple$##'); do bind "$path"; done
{
	echo "[global]"
	python3 -m pip config list | sed -nE "s/^global\.([a-z-]+)='(.*)'$/\1 = \2/p" | sed 's/\\n/ /g'
} > "$root/etc/pip.conf"

mkdir -p "$root/attune"
git ls-files -z | tar --null --files-from=- -c | tar -x -C "$root/attune"

inside() {
	chroot "$root" /usr/bin/env -i HOME=/root LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
		$(env | grep -E '^(PIP_|SSL_CERT_|REQUESTS_CA)' || true) "$@"
}

log=$(mktemp)
if SECONDS=0 && ! inside make -C /attune run 2>&1 | tee "$log" && [ "$SECONDS" -le 2 ]; then
	cure=$(grep -oE 'apt-get install -y .*' "$log")
	echo "+ $cure"
	inside sh -c "apt-get update -qq && DEBIAN_FRONTEND=noninteractive $cure" > "$log" 2>&1 || { cat "$log"; exit 1; }
	inside make -C /attune run
fi
test -s "$root/attune/out/music.wav"
inside /attune/.venv/bin/python --version
