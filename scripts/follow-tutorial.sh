#!/bin/sh
# Follows docs/tutorial.md in an empty folder, as a reader would: every block of it, built and run, and the server's answers checked.
#
#   scripts/follow-tutorial.sh DIR
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:?"usage: follow-tutorial.sh DIR, a folder that does not exist or is empty"}
start=$(date +%s)

need() {
    command -v "$1" >/dev/null 2>&1 || {
        echo "follow-tutorial: \`$1\` is missing: $2" >&2
        exit 1
    }
}
need cargo "install Rust"
need curl "it asks the server"

mkdir -p "$folder"
cd "$folder"
if [ -n "$(ls -A)" ]; then
    echo "follow-tutorial: \`$folder\` is not empty" >&2
    exit 1
fi

cargo new curves
cd curves
mkdir src/bin
cargo add candle-core@0.11.1 candle-nn@0.11.1
cargo add peft-runtime --path "$repository/peft-runtime"
for program in base adapt serve; do
    awk -v file="\`src/bin/$program.rs\`" '
        $0 == file { found = 1 }
        inside && /^```$/ { exit }
        inside { print }
        found && /^```rust/ { inside = 1 }
    ' "$repository/docs/tutorial.md" >"src/bin/$program.rs"
done

cargo run --release --bin base
for adapter in cosine double ramp; do
    cargo run --release --bin adapt -- "$adapter"
done
cargo build --release --bin serve
"${CARGO_TARGET_DIR:-target}/release/serve" &
server=$!
trap 'kill $server' EXIT

# What the page says that the server answers.
expect() {
    answer=$(curl --silent --retry 20 --retry-delay 1 --retry-connrefused "http://127.0.0.1:7878/$1/0.5")
    echo "$1 at 0.5: $answer, and it should be about $2"
    echo "$answer $2" | awk '{ off = $1 - $2; exit !(off < 0.05 && off > -0.05) }'
}
expect cosine 0.8776
expect double 0.9589
expect ramp 0.1563
expect __base__ 0.4794
curl --silent http://127.0.0.1:7878/cosin/0.5
echo "follow-tutorial: all done in $(($(date +%s) - start)) s"
