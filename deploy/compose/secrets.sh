#!/usr/bin/env bash
# Makes the secrets that compose.yaml names, in the folder secrets/ beside compose.yaml: a
# password for PostgreSQL, a master key, and a certificate of a new CA, to try the replicas.
# WATCHWORD names the program `watchword`. The default is the container image or, if Docker does
# not answer, the program of `make build`.
set -euo pipefail

folder=$(realpath -m "${1:-"$(dirname "$0")/secrets"}")
if [ -e "$folder" ]; then
	echo "secrets.sh: $folder exists already, and the database may need its secrets: choose another folder" >&2
	exit 1
fi
command -v openssl >/dev/null || { echo "secrets.sh: openssl is missing" >&2; exit 1; }

program=${WATCHWORD:-}
built=$(realpath -m "$(dirname "$0")/../../.bin/watchword")
if [ -z "$program" ] && ! docker info >/dev/null 2>&1; then
	[ -x "$built" ] || { echo "secrets.sh: Docker does not answer, and $built is missing: run make build" >&2; exit 1; }
	program=$built
fi

umask 077
new=$(mktemp -d "$folder.XXXXXX") # a script that stops early leaves no half of the secrets under the final name
trap 'rm -rf "$new"' EXIT
cd "$new"

password=$(openssl rand -hex 24)
printf '%s' "$password" >db-password
echo "db:5432:watchword:watchword:$password" >pgpass

if [ -n "$program" ]; then
	"$program" key create-master-key "$new/master.key"
else
	docker run --rm --user "$(id -u):$(id -g)" -v "$new:/new" "${WATCHWORD_IMAGE:-watchword}" key create-master-key /new/master.key
fi

ec=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
openssl req -x509 "${ec[@]}" -keyout ca.key -out ca.crt -days 825 -subj '/CN=Watchword compose' \
	-addext 'keyUsage=critical,keyCertSign' 2>/dev/null
openssl req "${ec[@]}" -keyout tls.key -out tls.csr -subj '/CN=watchword' 2>/dev/null
openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out tls.crt -days 825 \
	-extfile <(echo 'subjectAltName=DNS:watchword,DNS:localhost,IP:127.0.0.1') 2>/dev/null
rm ca.key tls.csr ca.srl

# Compose shows each file with the owner and the mode that the file has on this machine. The
# user of the container (65532) must be able to read the files; the folder keeps other users of
# this machine out.
chmod 0644 ./*
cd - >/dev/null
mv "$new" "$folder"
trap - EXIT
echo "made $folder"
