#!/bin/sh
# Generates the Python code of the proto files into a folder: generate.sh FOLDER [PROTO FILE]…
# Further proto files are named relative to a folder in the variable PROTO_PATH. protoc and its
# plugin for gRPC are in Debian's packages protobuf-compiler and protobuf-compiler-grpc.
set -eu
out=${1:?the folder for the generated code is missing}
shift
here=$(dirname "$0")
mkdir -p "$out"
exec protoc -I "$here/../../proto" -I "$here/proto" ${PROTO_PATH:+-I "$PROTO_PATH"} \
	--plugin=protoc-gen-grpc_python="$(command -v grpc_python_plugin)" --python_out="$out" --grpc_python_out="$out" \
	watchword/v1/access.proto watchword/v1/user.proto watchword/v1/auth.proto refusal.proto "$@"
