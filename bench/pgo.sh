#!/usr/bin/env bash
# Builds midge with a profile of the bench suite's load (PGO): the compiler then knows which branches are taken and
# what is called often. Takes two full builds and a short run of every scenario.
# Needs rustc's own llvm-profdata: rustup component add llvm-tools
set -eu
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
profdata=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
[ -x "$profdata" ] || { echo "$profdata is missing: rustup component add llvm-tools" >&2; exit 1; }
out=$PWD/target/pgo
rm -rf "$out/raw" && mkdir -p "$out/raw"
# With --target the flags do not reach build scripts.
build() { RUSTFLAGS=$1 cargo build --release --bin midge --target "$host" --target-dir "$2"; }

cargo build --release -p midge-bench
build "-Cprofile-generate=$out/raw" "$out/instrumented"
target/release/midge-bench run --quick --no-peer --server "midge=$out/instrumented/$host/release/midge"
"$profdata" merge -o "$out/midge.profdata" "$out/raw"
build "-Cprofile-use=$out/midge.profdata" "$out/optimised"
cp "$out/optimised/$host/release/midge" "$out/midge"
echo "Built $out/midge"
