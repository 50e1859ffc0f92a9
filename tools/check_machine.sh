#!/bin/sh
# Checks, before anything is downloaded, whether Attune can be installed on this machine: prints the path of a usable
# Python, or on standard error what to install. Plain POSIX sh, since the machine may have no Python.
#
#   tools/check_machine.sh [PYTHON]     without PYTHON: the first of python3.11, 3.12, 3.13, python3 that serves, then uv's
set -u

here=$(dirname "$0")
interpreter=$here/../ensemble/attune_ensemble/serving/launcher/interpreter.py
managed=3.12     # the version asked of uv
disk_gb=5        # packages 3.4, weights and server 0.5, exported models 0.5
cuda_gb=9        # where the package index's PyTorch brings CUDA
glibc=2.35       # minimum version, of the packaged server
lacking=         # a line each: sentence, tab, package
as_root=$([ "$(id -u)" = 0 ] || echo "sudo ")

fail() {
	printf 'Attune cannot be set up on this machine:\n' >&2
	printf '  %s\n' "$@" >&2
	exit 1
}

check_platform() {
	[ "$(uname -sm)" = "Linux x86_64" ] ||
		fail "it is $(uname -sm), and the packaged server runs on Linux x86_64 only."
	found=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/glibc //')
	[ "$(printf '%s\n' "$glibc" "${found:-0}" | sort -V | head -n 1)" = "$glibc" ] ||
		fail "the packaged server needs glibc $glibc or newer (Debian 12, Ubuntu 22.04); here it is ${found:-another library}."
	free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
	[ "$free" -ge "$disk_gb" ] || [ -e .venv/.installed ] ||
		fail "about $disk_gb GB of disk are needed here, and $free GB are free."
	[ "$free" -ge "$cuda_gb" ] || [ -e .venv/.installed ] ||
		echo "$free GB of disk are free: enough, but not where the package index's PyTorch brings CUDA ($cuda_gb GB)." >&2
}

# Print the path of the Python $1 if it is usable; otherwise record in $lacking what it lacks.
try() {
	path=$(command -v "$1") || return 1
	"$path" -c '' 2>/dev/null || return 1
	if "$path" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
		lines=$("$path" "$interpreter") && echo "$path" && return 0
	else
		lines=$("$path" -c 'import sys; print("%s is Python %d.%d, and Attune needs 3.11 to 3.13\t" % ((sys.argv[1],) + sys.version_info[:2]))' "$path")
	fi
	# Prefer the report that names an installable package to one about a Python's version.
	case "$lacking$lines" in
	"$lines") lacking=$lines ;;
	*) [ -n "$(packages)" ] || lacking=$lines ;;
	esac
	return 1
}

packages() { printf '%s\n' "$lacking" | cut -f 2 -s | grep . | tr '\n' ' ' | sed 's/ $//'; }

use_uv() {
	command -v uv >/dev/null || return 1
	echo "No Python of the system serves; taking $managed from uv ..." >&2
	uv python install --quiet "$managed" >&2 || return 1
	try "$(uv python find --python-preference only-managed "$managed")"
}

# Print the version of python3 that Debian or Ubuntu would install, such as "3.13"; nothing if it is unsupported.
offered() {
	apt-cache show python3 2>/dev/null | sed -n 's/^Version: \(3\.1[123]\)[.-].*/\1/p' | head -n 1
}

report() {
	cure=$(packages)
	if [ -z "$lacking" ]; then
		lacking="there is no Python"
		version=$(offered)
		library=libpython$version$([ "$version" != 3.12 ] || echo t64)
		[ -z "$version" ] || cure="python3 python3-venv $library"
	fi
	lines=$(printf '%s\n' "$lacking" | cut -f 1)
	[ -z "$cure" ] || ! command -v apt-get >/dev/null ||
		lines="$lines
Install what is missing, and call make again:
  ${as_root}apt-get update && ${as_root}apt-get install -y $cure"
	lines="$lines
Or take a Python that uv manages (https://docs.astral.sh/uv), for which nothing else is needed:
  uv python install $managed && make run PYTHON=\"\$(uv python find --python-preference only-managed $managed)\""
	old=$IFS
	IFS='
'
	fail $lines
	IFS=$old
}

check_platform
if [ $# -gt 0 ] && [ -n "$1" ]; then
	try "$1" && exit 0
	[ -n "$lacking" ] || fail "there is no program $1."
else
	for name in python3.11 python3.12 python3.13 python3; do
		try "$name" && exit 0
	done
	use_uv && exit 0
fi
report
