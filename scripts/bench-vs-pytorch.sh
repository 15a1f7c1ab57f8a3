#!/bin/sh
# Measures training steps of PyTorch + PEFT, plain candle and this library in turn, and writes a table of medians and
# ratios into a Markdown file, between two marks.
#
#   scripts/bench-vs-pytorch.sh [--venv DIR] [--rounds 3] [--steps 8] [--threads 2] [--out docs/performance.md]
#                               [--sentiment MODEL DATA] [--adapters] [--generate] [--larger]
#
# --venv DIR     builds a virtual environment with PyTorch and PEFT there, or uses the one that is there
# --sentiment    measures an epoch of the `sentiment` example as well (scripts/fetch-assets.sh downloads model and data)
# --adapters     measures injection, loading, mixed batches and inference as well
# --generate     measures reading a prompt of 512 tokens and generating from it as well, in f32 and bf16
# --larger       measures steps on the sizes of Qwen2.5-0.5B and Llama-3.2-1B in bf16 as well
# Without --venv, the Python in $PYTHON, or python3, must have the packages in tests/python/requirements.txt.
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-python3} rounds=3 steps=8 threads=2 out=docs/performance.md venv= model= data= adapters= generate= larger=
usage() {
    sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
while [ $# -gt 0 ]; do
    case $1 in
    --venv | --rounds | --steps | --threads | --out)
        [ $# -ge 2 ] || usage
        eval "${1#--}=\$2"
        shift 2
        ;;
    --sentiment)
        [ $# -ge 3 ] || usage
        model=$2 data=$3
        shift 3
        ;;
    --adapters | --generate | --larger)
        eval "${1#--}=yes"
        shift
        ;;
    *) usage ;;
    esac
done

if [ -n "$venv" ]; then
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    python=$venv/bin/python
    "$python" -c "import peft, torch, transformers" 2>/dev/null ||
        "$python" -m pip install --quiet -r tests/python/requirements.txt
fi
if ! "$python" -c "import peft, torch, transformers" 2>/dev/null; then
    echo "bench-vs-pytorch: $python has no peft, torch and transformers; try --venv DIR" >&2
    exit 1
fi

cargo build --release -p peft-examples --bin train_bench --bin stock_candle --bin sentiment --bin adapter_bench \
    --bin generate_bench
target=${CARGO_TARGET_DIR:-target}/release
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS="$threads" RAYON_NUM_THREADS="$threads" TOKENIZERS_PARALLELISM=false

# measure CONFIGURATION PROGRAM COMMAND...: keeps the last line of the command's output.
measure() {
    configuration=$1 program=$2
    shift 2
    echo "round $round: $configuration, $program" >&2
    "$@" >"$work/output" 2>"$work/errors" || {
        cat "$work/errors" >&2
        exit 1
    }
    printf '{"configuration": "%s", "program": "%s", "result": %s}\n' "$configuration" "$program" \
        "$(tail -n 1 "$work/output")" >>"$work/results"
}

round=1
while [ "$round" -le "$rounds" ]; do
    for batch in 1 4; do
        shape="--batch $batch --seq 256 --steps $steps --threads $threads --json"
        measure "LoRA, $batch × 256" pytorch "$python" tests/python/train_bench.py $shape
        measure "LoRA, $batch × 256" candle "$target/stock_candle" $shape
        measure "LoRA, $batch × 256" ours "$target/train_bench" $shape
        measure "LoRA in bf16, $batch × 256" pytorch "$python" tests/python/train_bench.py --dtype bf16 $shape
        measure "LoRA in bf16, $batch × 256" ours "$target/train_bench" --dtype bf16 $shape
    done
    shape="--batch 1 --seq 256 --steps $steps --threads $threads --json"
    measure "QLoRA Q4_1, 1 × 256" ours "$target/train_bench" --method qlora --quantized Q4_1 $shape
    measure "QLoRA Q4_0 in bf16, 1 × 256" ours "$target/train_bench" --method qlora --quantized Q4_0 --dtype bf16 $shape
    if [ -n "$larger" ]; then
        shape="--shape qwen2.5-0.5b --batch 1 --seq 512 --steps 5 --threads $threads --json"
        measure "LoRA in bf16, Qwen2.5-0.5B, 1 × 512" pytorch "$python" tests/python/train_bench.py --dtype bf16 $shape
        measure "LoRA in bf16, Qwen2.5-0.5B, 1 × 512" ours "$target/train_bench" --dtype bf16 $shape
        shape="--shape llama3.2-1b --batch 1 --seq 256 --steps 4 --threads $threads --json"
        measure "LoRA in bf16, Llama-3.2-1B, 1 × 256" ours "$target/train_bench" --dtype bf16 $shape
        for type in Q4_0 Q4_K; do
            measure "QLoRA $type in bf16, Llama-3.2-1B, 1 × 256" ours \
                "$target/train_bench" --method qlora --quantized $type --dtype bf16 $shape
        done
    fi
    if [ -n "$generate" ]; then
        for type in f32 bf16; do
            measure "generating in $type" pytorch "$python" tests/python/generate_bench.py --dtype $type --threads "$threads"
            measure "generating in $type" ours "$target/generate_bench" --dtype $type --threads "$threads"
        done
    fi
    if [ -n "$model" ]; then
        measure "sentiment, one epoch" pytorch "$python" tests/python/sentiment.py --model "$model" --data "$data" \
            --threads "$threads"
        measure "sentiment, one epoch" ours "$target/sentiment" --model "$model" --data "$data"
    fi
    round=$((round + 1))
done
if [ -n "$adapters" ]; then
    "$python" tests/python/adapter_bench.py --threads "$threads" >"$work/adapters.pytorch"
    "$target/adapter_bench" --threads "$threads" >"$work/adapters.ours"
fi

"$python" scripts/bench-table.py "$work" "$out" --rounds "$rounds" --steps "$steps" --threads "$threads"
echo "$out"
