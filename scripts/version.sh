#!/usr/bin/env bash
# Prints the version of this clone in the form of Go's toolchain: the tag of the commit, or a
# pseudo-version after the newest tag, and +dirty if the clone has changes. Prints nothing in
# a folder that is no clone. The Go toolchain stamps no version in a linked worktree of git,
# or with -buildvcs=false in GOFLAGS, so the Makefile stamps what this script prints.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -e .git ] || exit 0

dirty=
[ -z "$(git status --porcelain)" ] || dirty=+dirty
match=(--tags --match 'v[0-9]*.[0-9]*.[0-9]*')
if tag=$(git describe --exact-match "${match[@]}" 2>/dev/null); then
	echo "$tag$dirty"
	exit
fi
# The time of the commit in UTC, and twelve digits of its hash.
commit=$(TZ=UTC0 git log -1 --date=format-local:%Y%m%d%H%M%S --format=%cd-%H | cut -c1-27)
case $(git describe --abbrev=0 "${match[@]}" 2>/dev/null || true) in
'') echo "v0.0.0-$commit$dirty" ;;
*-*) echo "$(git describe --abbrev=0 "${match[@]}").0.$commit$dirty" ;;
*)
	tag=$(git describe --abbrev=0 "${match[@]}")
	echo "${tag%.*}.$((${tag##*.} + 1))-0.$commit$dirty"
	;;
esac
