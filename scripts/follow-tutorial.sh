#!/bin/sh
# Follows the tutorials in an empty folder, as a reader would: writes the files that the pages show, builds and runs
# them, and checks the output.
#
#   scripts/follow-tutorial.sh DIR [--model FOLDER] [finetune|curves]...
#
# finetune         docs/tutorial.md; downloads SmolLM2-135M-Instruct from the HuggingFace hub
# curves           docs/your-own-model.md; downloads nothing
# --model FOLDER   takes the model from FOLDER instead (tests/python/gguf_folder.py makes one from a GGUF file)
# Without names it follows both.
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)
usage() {
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
fail() {
    echo "follow-tutorial: $*" >&2
    exit 1
}

[ $# -ge 1 ] || usage
case $1 in -*) usage ;; esac
folder=$1 model='' pages=''
shift
while [ $# -gt 0 ]; do
    case $1 in
    --model)
        [ $# -ge 2 ] || usage
        model=$(cd "$2" && pwd)
        shift
        ;;
    finetune | curves) pages="$pages $1" ;;
    *) usage ;;
    esac
    shift
done
command -v cargo >/dev/null 2>&1 || fail "\`cargo\` is missing: install Rust"
command -v curl >/dev/null 2>&1 || fail "\`curl\` is missing: it sends the requests to the servers"
mkdir -p "$folder"
cd "$folder"
[ -z "$(ls -A)" ] || fail "\`$folder\` is not empty"
folder=$(pwd)
start=$(date +%s)

# new PROJECT PAGE DEPENDENCY...: creates a project with the files that the page shows, and changes into it.
new() {
    project=$1 page=$repository/docs/$2
    shift 2
    cd "$folder"
    cargo new --lib "$project"
    cd "$project"
    mkdir src/bin
    for dependency; do
        # Split on purpose: a dependency with its options.
        # shellcheck disable=SC2086
        cargo add $dependency
    done
    awk '
        inside && /^```$/ { inside = 0; next }
        inside { print > file }
        /^```rs$/ { inside = 1 }
        /^`src\/.*`$/ { file = $0; gsub("`", "", file); printf "" > file }
    ' "$page"
}

server=
stop() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    server=
}
trap stop EXIT

# serve PROGRAM: builds it and leaves it running until `stop`.
serve() {
    cargo build --release --bin "$1"
    # Cargo replaces itself with the program, so `stop` ends the program.
    cargo run --release --bin "$1" &
    server=$!
}

ask() {
    curl --silent --retry 60 --retry-delay 1 --retry-connrefused "$@"
}

# The held-out losses that the training program printed, before and after.
losses() {
    sed -n 's/^held-out loss \([0-9.]*\).*/\1/p' train.txt | tr '\n' ' '
}

follow_finetune() {
    new finetune tutorial.md candle-core@0.11.1 "tokenizers@0.23 --no-default-features --features fancy-regex" \
        "peft-runtime --features models --path $repository/peft-runtime"
    if [ -n "$model" ]; then
        cp -r "$model" smollm2
    else
        mkdir smollm2
        hub=https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct/resolve/main
        for file in config.json model.safetensors tokenizer.json; do
            curl --fail -L -o "smollm2/$file" "$hub/$file"
        done
    fi
    cp "$repository/examples/data/alice.txt" .
    prompt="Alice looked at the cat"
    cargo run --release --bin train -- alice alice.txt "$prompt" >train.txt || {
        cat train.txt
        fail "the training program failed"
    }
    cat train.txt
    losses | awk '{ exit !($1 - $2 > 0.1) }' || fail "the held-out loss did not fall: $(losses)"
    cargo run --release --bin merge -- alice "$prompt"
    serve serve
    for adapter in alice __base__; do
        text=$(ask --fail -d "$prompt" "http://127.0.0.1:7878/$adapter")
        echo "$adapter: $text"
        [ -n "$text" ] || fail "the server returned nothing with \`$adapter\`"
    done
    ask -d "$prompt" http://127.0.0.1:7878/alicia | grep alice || fail "the server does not say which adapters there are"
    stop
}

follow_curves() {
    new curves your-own-model.md "candle-core@0.11.1 candle-nn@0.11.1" "peft-runtime --path $repository/peft-runtime"
    cargo run --release --bin base
    for adapter in cosine double ramp; do
        cargo run --release --bin adapt -- "$adapter"
    done
    serve serve_curves
    # What the server returns at 0.5, according to the page.
    for expected in cosine=0.8776 double=0.9589 ramp=0.1563 __base__=0.4794; do
        adapter=${expected%=*} value=${expected#*=}
        found=$(ask "http://127.0.0.1:7878/$adapter/0.5")
        echo "$adapter at 0.5: $found (should be about $value)"
        echo "$found $value" | awk '{ off = $1 - $2; exit !(off < 0.05 && off > -0.05) }'
    done
    ask http://127.0.0.1:7878/cosin/0.5 | grep cosine || fail "the server does not say which adapters there are"
    stop
}

for page in ${pages:-finetune curves}; do
    "follow_$page"
done
echo "follow-tutorial: all done in $(($(date +%s) - start)) s"
