#!/bin/sh
# Real weights from end to end: downloads SmolLM2-135M-Instruct as a GGUF file, compares greedy continuations with
# candle-transformers, trains an adapter on a text, and loads it in Python PEFT on the same weights made dense.
#
#   scripts/smollm2.sh DIR [--venv DIR] [--method lora] [--steps 100] [--seq 256] [--data FILE.txt] [--threads N]
#
# DIR            gets the GGUF file, the adapter, its logits on held-out text and the output of the programs
# --venv DIR     builds a virtual environment with PyTorch and PEFT there, or uses the one that is there
# --data FILE    the text; without it, the first three chapters of Alice in Wonderland, which are part of the repository
# Without --venv, the Python in $PYTHON, or python3, is used if it has the packages in tests/python/requirements.txt;
# otherwise the Python part is skipped, and the last line says so.
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)

python=${PYTHON:-python3} venv= method=lora steps=100 seq=256 data= threads=
usage() {
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
[ $# -ge 1 ] || usage
case $1 in -*) usage ;; esac
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
while [ $# -gt 0 ]; do
    case $1 in
    --venv | --method | --steps | --seq | --data | --threads)
        [ $# -ge 2 ] || usage
        eval "${1#--}=\$2"
        shift 2
        ;;
    *) usage ;;
    esac
done
if [ -n "$data" ]; then
    [ -f "$data" ] || {
        echo "smollm2: there is no file \`$data\`" >&2
        exit 1
    }
    data=$(cd "$(dirname "$data")" && pwd)/$(basename "$data")
fi
if [ -n "$venv" ]; then
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    python=$(cd "$venv/bin" && pwd)/python
fi
cd "$repository"
has_peft() {
    "$python" -c "import gguf, peft, torch, transformers" 2>/dev/null
}
if [ -n "$venv" ] && ! has_peft; then
    "$python" -m pip install --quiet -r tests/python/requirements.txt
fi

step() {
    printf '\n== %s\n' "$*"
    "$@"
}

step env PYTHON="$python" scripts/fetch-assets.sh "$folder" smollm2
gguf=$folder/smollm2.gguf

step env PEFT_ASSETS="$folder" cargo test -p peft-tests --test smollm2 -- --nocapture

# One trained adapter; the program's output ends with a JSON object.
adapter=$folder/$method
logits=$folder/$method-logits.safetensors
output=$folder/$method.txt
set -- --model "$gguf" --method "$method" --steps "$steps" --seq "$seq" --save "$adapter" --logits "$logits"
[ -z "$data" ] || set -- "$@" --data "$data"
[ -z "$threads" ] || set -- "$@" --threads "$threads"
printf '\n== llama %s\n' "$*"
cargo run --release -p peft-examples --bin llama -- "$@" >"$output" || {
    cat "$output"
    exit 1
}
cat "$output"

# field NAME: a number of the JSON object.
field() {
    tail -n 1 "$output" | sed -n "s/.*\"$1\":\([-0-9.eE+]*\).*/\1/p"
}
before=$(field held_out_before) after=$(field held_out_after)
# A useless run would end where it began: a loss that is lower by 0.1 is a perplexity that is lower by 10%.
if ! awk "BEGIN { exit !($before - $after >= 0.1) }"; then
    echo "smollm2: the loss on the held-out text only went from $before to $after" >&2
    exit 1
fi

compared="SKIPPED: \`$python\` lacks packages in tests/python/requirements.txt; try --venv DIR"
if has_peft; then
    set -- --gguf "$gguf" --adapter "$adapter" --logits "$logits" --loss "$after" --seq "$seq"
    [ -z "$data" ] || set -- "$@" --data "$data"
    printf '\n== tests/python/llama_adapter.py %s\n' "$*"
    compared=$(HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false "$python" tests/python/llama_adapter.py "$@") || {
        echo "$compared"
        exit 1
    }
fi

cat <<END

greedy continuations   the same 32 tokens as candle-transformers on each prompt
held-out loss          $before before, $after after $steps steps of $method
adapter in PEFT        $compared
END
