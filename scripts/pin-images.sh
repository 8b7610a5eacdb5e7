#!/usr/bin/env bash
# pin-images.sh [DOCKERFILE]: adds the digest of each base image to the Dockerfile, so that a
# build uses the same bytes every time. Run the script with a network, after a change of a
# version in the Dockerfile, and commit the result. If a registry does not answer, the
# Dockerfile stays as it was.
set -euo pipefail

file=${1:-$(dirname "$0")/../Dockerfile}
# The tests replace the addresses of the registry and of the server that gives tokens for it.
registry=${PIN_REGISTRY:-https://registry-1.docker.io}
auth=${PIN_AUTH:-https://auth.docker.io}

sum() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d' ' -f1; }

# get URL [HEADER]: the header goes through standard input, since arguments are public.
get() { printf '%s' "${2:+header = \"$2\"}" | curl -fsSL --retry 2 --max-time 60 --config - "${@:3}" "$1"; }

# digest IMAGE prints the digest of an image with a tag on Docker Hub. By definition the
# digest is the sum of the manifest, so no header of an answer has to be believed.
digest() {
	local name=${1%:*} tag=${1##*:} token
	[[ $name == */* ]] || name=library/$name
	token=$(get "$auth/token?service=registry.docker.io&scope=repository:$name:pull" |
		sed -n 's/.*"token" *: *"\([^"]*\)".*/\1/p')
	[ -n "$token" ] || { echo "$auth gave no token for $name" >&2 && return 1; }
	rm -f "$work/manifest" # the manifest of the image before
	get "$registry/v2/$name/manifests/$tag" "Authorization: Bearer $token" -o "$work/manifest" \
		-H 'Accept: application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json' || return 1
	grep -q '"manifests"' "$work/manifest" || { echo "$name:$tag: the answer is no list of manifests" >&2 && return 1; }
	sum <"$work/manifest"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$file" "$work/Dockerfile"
images=$(sed -nE 's/^FROM ([a-z0-9./_-]+:[A-Za-z0-9._-]+)(@sha256:[0-9a-f]+)?( .*)?$/\1/p' "$file")
[ -n "$images" ] || { echo "$file names no image with a version" >&2 && exit 1; }
for image in $images; do
	pinned=$image@sha256:$(digest "$image")
	sed -i.old -E "s|^FROM ${image//./\\.}(@sha256:[0-9a-f]+)?( .*)?$|FROM $pinned\2|" "$work/Dockerfile"
	echo "$pinned"
done
cat "$work/Dockerfile" >"$file"
