#!/usr/bin/env bash
# Says which of the programs that `make test` needs are missing. On Debian and
# Ubuntu, as root, it installs those that apt-get has.
set -euo pipefail

min_node=20

have() { command -v "$1" >/dev/null 2>&1; }

if ! have go; then
	echo "Go is missing: install Go 1.26 or newer from https://go.dev/dl/" >&2
	exit 1
fi

# The race detector needs cgo, and so a C compiler with the C library's headers.
have_cc() {
	local cc
	cc=$(go env CC)
	have "${cc%% *}" && echo '#include <stdlib.h>' | $cc -x c -fsyntax-only - 2>/dev/null
}

have_node() {
	have node && have npm && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge "$min_node" ]
}

missing=()
have_cc || missing+=(gcc libc6-dev)
have node || missing+=(nodejs)
have npm || missing+=(npm)
if [ ${#missing[@]} -gt 0 ] && have apt-get && [ "$(id -u)" = 0 ]; then
	echo "installing ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

failed=0
if ! have_cc; then
	echo "A C compiler is missing; the race detector needs one. Debian, Ubuntu: apt-get install gcc libc6-dev" >&2
	failed=1
fi
if ! have_node; then
	echo "Node.js $min_node or newer with npm is missing; the Node client's tests need it. https://nodejs.org/" >&2
	failed=1
fi
exit $failed
