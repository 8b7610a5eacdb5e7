#!/usr/bin/env bash
# Says which of the programs that `make test` needs are missing; with --slow, also which programs
# that `make test-slow` needs. On Debian and Ubuntu, as root, the script installs the missing
# programs that apt-get has.
set -euo pipefail

slow=false
if [ "${1:-}" = --slow ]; then slow=true; fi

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

# Debian's own Python, because another python3 may come first in PATH. protoc reads the proto files of
# Google's types from /usr/include or beside itself.
python=${PYTHON:-/usr/bin/python3}
python_packages=(python3-grpcio python3-protobuf protobuf-compiler protobuf-compiler-grpc libprotobuf-dev)
have_python() {
	"$python" -c 'import grpc, google.protobuf' 2>/dev/null && have protoc && have grpc_python_plugin &&
		echo 'syntax = "proto3"; import "google/protobuf/any.proto";' |
		protoc -I /dev --descriptor_set_out=/dev/null /dev/stdin >/dev/null 2>&1
}

# have_postgres and have_pgbouncer look where internal/pgtest looks: Debian keeps the programs of
# PostgreSQL and PgBouncer out of PATH.
have_postgres() {
	local dir
	for dir in "$(dirname "$(readlink -f "$(command -v postgres)" 2>/dev/null)")" "$(pg_config --bindir 2>/dev/null)" \
		/usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/local/pgsql/bin \
		/opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin; do
		[ -x "$dir/postgres" ] && [ -x "$dir/initdb" ] && [ -x "$dir/pg_basebackup" ] && return
	done
	return 1
}

have_pgbouncer() {
	local path
	for path in pgbouncer /usr/sbin/pgbouncer /usr/local/sbin/pgbouncer /opt/homebrew/bin/pgbouncer; do
		have "$path" && return
	done
	return 1
}

# The tests of deploy/ run these programs. promtool is in the package of Prometheus, which
# `make test-slow` runs.
have_prometheus() { have promtool && have prometheus; }
have_deploy_tools() { have_prometheus && have systemd-analyze && have openssl; }

# The libraries of other languages for TestLibraries of bench/verify, from Debian's own packages:
# another python3 may come first in PATH.
verifiers=(g++ libcpp-jwt-dev libcrypt-jwt-perl libjwt-dev libssl-dev nlohmann-json3-dev
	python3-authlib python3-cryptography python3-jose python3-jwcrypto python3-jwt ruby ruby-json-jwt ruby-jwt)
have_verifiers() {
	/usr/bin/python3 -c 'import authlib, cryptography, jose, jwcrypto, jwt' 2>/dev/null &&
		ruby -e 'require "json/jwt"; require "jwt"' 2>/dev/null && perl -MCrypt::JWT -e 1 2>/dev/null &&
		echo '#include <jwt.h>' | cc -x c -fsyntax-only - 2>/dev/null &&
		echo '#include <jwt/jwt.hpp>' | c++ -x c++ -std=c++17 -fsyntax-only - 2>/dev/null
}

# The proxies that the slow tests of docs/proxies.md run. Debian keeps nginx and HAProxy out of PATH.
proxies=
if $slow; then proxies="nginx haproxy caddy"; fi
have_proxy() { have "$1" || [ -x "/usr/sbin/$1" ]; }

# Debian starts a server when the package of the server is installed, and at each boot. The tests
# start servers of their own, so the script prevents these starts.
policy=/usr/sbin/policy-rc.d
no_cluster=/etc/postgresql-common/createcluster.d/watchword-tests.conf
made=()
leave_nothing_behind() {
	[ ${#made[@]} = 0 ] || rm -f "${made[@]}"
	rmdir -p "$(dirname "$no_cluster")" 2>/dev/null || true
}
trap leave_nothing_behind EXIT

start_nothing() {
	if [ ! -e "$policy" ]; then
		made+=("$policy")
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod +x "$policy"
	fi
	made+=("$no_cluster")
	mkdir -p "$(dirname "$no_cluster")"
	echo 'create_main_cluster = false' >"$no_cluster"
}

missing=()
have_cc || missing+=(gcc libc6-dev)
have node || missing+=(nodejs)
have npm || missing+=(npm)
have_python || missing+=("${python_packages[@]}")
have_pgbouncer || missing+=(pgbouncer)
have_postgres || missing+=(postgresql)
have_prometheus || missing+=(prometheus)
have systemd-analyze || missing+=(systemd)
have openssl || missing+=(openssl)
if $slow; then have_verifiers || missing+=("${verifiers[@]}"); fi
for proxy in $proxies; do have_proxy "$proxy" || missing+=("$proxy"); done
if [ ${#missing[@]} -gt 0 ] && have apt-get && [ "$(id -u)" = 0 ]; then
	echo "installing ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	start_nothing
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${missing[@]}"
	for service in pgbouncer prometheus nginx haproxy; do
		if [[ " ${missing[*]} " = *" $service "* ]]; then update-rc.d "$service" disable; fi # no start at boot
	done
	if [[ " ${missing[*]} " = *" caddy "* ]]; then systemctl disable --quiet caddy; fi # has no script for update-rc.d
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
if ! have_python; then
	echo "grpcio or protobuf for $python, protoc or grpc_python_plugin is missing; the Python client's tests need them." >&2
	echo "  Debian, Ubuntu: apt-get install ${python_packages[*]}" >&2
	echo "Or name another Python that has both packages: PYTHON=/path/of/python3" >&2
	failed=1
fi
postgres_lack=()
have_postgres || postgres_lack+=(PostgreSQL)
have_pgbouncer || postgres_lack+=(PgBouncer)
if [ ${#postgres_lack[@]} -gt 0 ] && [ -n "${WATCHWORD_TEST_POSTGRES_URL:-}" ]; then
	echo "WATCHWORD_TEST_POSTGRES_URL is set, and these programs are missing: ${postgres_lack[*]}." >&2
	echo "LEFT OUT are the tests that start servers of their own: lost and promoted databases, PgBouncer." >&2
elif [ ${#postgres_lack[@]} -gt 0 ]; then
	echo "Missing: ${postgres_lack[*]}. The tests start servers of their own from these programs." >&2
	echo "  Debian, Ubuntu: apt-get install postgresql pgbouncer" >&2
	echo "  Fedora:         dnf install postgresql-server pgbouncer" >&2
	echo "  macOS:          brew install postgresql pgbouncer" >&2
	echo "Or name a server on which tests may make databases, and do without the tests of lost databases:" >&2
	echo "  WATCHWORD_TEST_POSTGRES_URL=postgres://user:password@host:5432/postgres" >&2
	failed=1
fi
if ! have_deploy_tools; then
	echo "prometheus, promtool, systemd-analyze or openssl is missing: the tests of some files in deploy/ are LEFT OUT." >&2
	echo "  Debian, Ubuntu: apt-get install prometheus systemd openssl" >&2
fi
if $slow && ! have_verifiers; then
	echo "A library of another language is missing; TestLibraries of bench/verify needs them." >&2
	echo "  Debian: apt-get install ${verifiers[*]}" >&2
	failed=1
fi
for proxy in $proxies; do
	if ! have_proxy "$proxy"; then
		echo "$proxy is missing; the slow tests of docs/proxies.md need it. Debian, Ubuntu: apt-get install $proxy" >&2
		failed=1
	fi
done
exit $failed
