#!/bin/sh
# What `#[derive(Injectable)]` costs the compiler, compared with `#[derive(Clone, Debug)]` on the same structs:
#   scripts/macro-cost.sh [STRUCTS] [ROUNDS]
# Generates STRUCTS (200) structs of 10 fields and checks them ROUNDS (9) times without a derive, with Clone and Debug,
# and with Injectable; the shortest time of each counts. Then it times the macro by itself, outside the compiler.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
structs=${1:-200}
rounds=${2:-9}
work=${CARGO_TARGET_DIR:-$root/target}/macro-cost

command -v python3 >/dev/null 2>&1 || {
    echo "macro-cost: python3 is needed to generate the structs and to measure the time" >&2
    exit 1
}
mkdir -p "$work/src"
cp "$root/Cargo.lock" "$work/Cargo.lock"
cat >"$work/Cargo.toml" <<TOML
[package]
name = "macro-cost"
version = "0.0.0"
edition = "2024"
publish = false

[workspace]

[dependencies]
candle-nn = "0.11.1"
peft-runtime = { path = "$root/peft-runtime" }
TOML

python3 - "$work" "$structs" "$rounds" <<'PYTHON'
"""Checks the same structs under each derive, and prints the shortest times."""
import os
import subprocess
import sys
import time
from pathlib import Path

work, structs, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
DERIVES = {"none": "", "Clone, Debug": "#[derive(Clone, Debug)]", "Injectable": "#[derive(Injectable)]"}
FIELDS = """\
    /// A layer.
    pub q_proj: Adapted<Linear>,
    /// A layer.
    pub k_proj: Adapted<Linear>,
    /// A layer.
    pub v_proj: Adapted<Linear>,
    /// A layer.
    pub o_proj: Adapted<Linear>,
    /// A layer.
    pub embed: Adapted<Embedding>,
    /// Layers.
    pub experts: Vec<Adapted<Linear>>,
    /// A layer, or none.
    pub norm: Option<Adapted<LayerNorm>>,
    /// A setting.
    pub heads: usize,
    /// A setting.
    pub epsilon: f64,
    /// A setting.
    pub name: String,
"""


def source(derive: str) -> str:
    """The crate's text; without a derive the imports would be unused."""
    head = "#![allow(unused_imports)]\nuse candle_nn::{Embedding, LayerNorm, Linear};\nuse peft_runtime::prelude::*;\n"
    return head + "".join(f"{derive}\npub struct Model{i} {{\n{FIELDS}}}\n" for i in range(structs))


def check() -> float:
    """The seconds that one `cargo check` of this crate takes, without its dependencies."""
    command = ["cargo", "check", "--offline", "--quiet", "--manifest-path", str(work / "Cargo.toml")]
    environment = dict(os.environ, CARGO_TARGET_DIR=str(work / "target"), CARGO_INCREMENTAL="0")
    start = time.monotonic()
    subprocess.run(command, check=True, env=environment)
    return time.monotonic() - start


best = {name: float("inf") for name in DERIVES}
for turn in range(rounds + 1):
    for name, derive in DERIVES.items():
        (work / "src/lib.rs").write_text(source(derive))
        seconds = check()
        if turn > 0:  # The first turn compiles the dependencies.
            best[name] = min(best[name], seconds)

print(f"cargo check of {structs} structs of 10 fields, shortest of {rounds}:")
for name, seconds in best.items():
    print(f"  {name:13} {seconds:7.3f} s")
pair, own = (best[name] - best["none"] for name in ("Clone, Debug", "Injectable"))
print(f"  Injectable costs {own:.3f} s, Clone and Debug {pair:.3f} s: {own / max(pair, 1e-3):.2f} times")
PYTHON

cd "$root"
PEFT_MACRO_STRUCTS="$structs" cargo test --quiet --release -p peft-macros -- --ignored --nocapture the_macro_alone
