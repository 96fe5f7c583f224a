#!/bin/sh
# Generates the Python package of all *.proto files: proto/criw_proto, or the directory named instead of it.
set -eu
cd "$(dirname "$0")/.."
out=${1:-proto/criw_proto}
programs=$PWD/.venv/bin

rm -rf "$out.new"
mkdir -p "$out.new"
# shellcheck disable=SC2046 # the sources' names have no spaces
PATH=$programs:$PATH "$programs/python" -m grpc_tools.protoc -I proto --python_betterproto2_out="$out.new" \
    --python_betterproto2_opt=client_generation=async,server_generation=async \
    $(find proto -name '*.proto' | LC_ALL=C sort)
touch "$out.new/py.typed"
rm -rf "$out"
mv "$out.new" "$out"
