"""Writes the measurements of `bench-vs-pytorch.sh` as Markdown tables, between two marks in a file."""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess

BEGIN, END = "<!-- bench-vs-pytorch: begin -->", "<!-- bench-vs-pytorch: end -->"

PROGRAMS = {"pytorch": "PyTorch + PEFT", "candle": "plain candle", "ours": "this library"}

# What a configuration without a PyTorch run is compared with.
REFERENCES = {
    "QLoRA Q4_1, 1 × 256": ("LoRA, 1 × 256", "ours", "our f32 step"),
    "QLoRA Q4_0 in bf16, 1 × 256": ("LoRA in bf16, 1 × 256", "ours", "our bf16 step"),
    "QLoRA Q4_0 in bf16, Llama-3.2-1B, 1 × 256": ("LoRA in bf16, Llama-3.2-1B, 1 × 256", "ours", "our bf16 step"),
    "QLoRA Q4_K in bf16, Llama-3.2-1B, 1 × 256": ("LoRA in bf16, Llama-3.2-1B, 1 × 256", "ours", "our bf16 step"),
    "LoRA in bf16, 1 × 256": ("LoRA, 1 × 256", "ours", "our f32 step"),
    "LoRA in bf16, 4 × 256": ("LoRA, 4 × 256", "ours", "our f32 step"),
}


def medians(path: pathlib.Path) -> dict:
    """The medians over all rounds, by configuration and program."""
    runs = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        values = runs.setdefault(run["configuration"], {}).setdefault(run["program"], {})
        for key, value in run["result"].items():
            if isinstance(value, (int, float)):
                values.setdefault(key, []).append(value)
    return {
        configuration: {
            program: {key: statistics.median(values) for key, values in results.items()}
            for program, results in programs.items()
        }
        for configuration, programs in runs.items()
    }


def imports(result: dict) -> float:
    """The part of the peak that was in use once the modules were imported, where the program reports it."""
    return result.get("imports_rss_mb", 0)


def seconds(result: dict) -> float:
    return result.get("seconds_per_step", result.get("seconds"))


def steps_table(found: dict) -> list[str]:
    lines = [
        "| | program | seconds | peak memory | in matrix products |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for configuration, programs in found.items():
        for program, result in programs.items():
            share = result.get("matmul_share")
            share = f"{share:.0%}" if share is not None else "–"
            memory = f"{result['peak_rss_mb']:,.0f} MiB"
            if imports(result):
                memory += f", {imports(result):,.0f} of them imports"
            lines.append(f"| {configuration} | {PROGRAMS[program]} | {seconds(result):.2f} | {memory} | {share} |")
    return lines


def ratios_table(found: dict) -> list[str]:
    lines = [
        "| this library compared with | | time | memory | memory without its imports |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for configuration, programs in found.items():
        references = [(PROGRAMS[name], programs[name]) for name in ("pytorch", "candle") if name in programs]
        if configuration in REFERENCES:
            other, program, name = REFERENCES[configuration]
            references.append((name, found[other][program]))
        for name, reference in references:
            time = seconds(programs["ours"]) / seconds(reference)
            peak = programs["ours"]["peak_rss_mb"]
            memory = peak / reference["peak_rss_mb"]
            without = f"{peak / (reference['peak_rss_mb'] - imports(reference)):.2f}" if imports(reference) else "–"
            lines.append(f"| {name} | {configuration} | {time:.2f} | {memory:.2f} | {without} |")
    return lines


def generation_table(found: dict) -> list[str]:
    if not found:
        return []
    lines = [
        "",
        "| | program | prompt of 512 tokens | a token | tokens/s | of what the memory gives |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for configuration, programs in found.items():
        for program, result in programs.items():
            share = result.get("share_of_read_rate")
            share = f"{share:.0%}, at {result['read_bytes_per_second'] / 1e9:.1f} GB/s" if share is not None else "–"
            lines.append(
                f"| {configuration} | {PROGRAMS[program]} | {result['prompt_seconds']:.2f} s | "
                f"{1e3 * result['token_seconds']:.1f} ms | {result['tokens_per_second']:.1f} | {share} |"
            )
    return lines


def adapters_table(work: pathlib.Path) -> list[str]:
    paths = {program: work / f"adapters.{program}" for program in ("pytorch", "ours")}
    if not all(path.exists() for path in paths.values()):
        return []
    measured = {
        program: {value["measured"]: value for value in map(json.loads, path.read_text().splitlines())}
        for program, path in paths.items()
    }
    python, ours = measured["pytorch"], measured["ours"]

    def row(what: str, value, unit: str) -> str:
        theirs, mine = value(python), value(ours)
        return f"| {what} | {theirs:,.2f}{unit} | {mine:,.2f}{unit} | {mine / theirs:.3f} |"

    layers = ours["injection"]["layers"]
    return [
        "",
        "| | PyTorch + PEFT | this library | ratio |",
        "| --- | ---: | ---: | ---: |",
        row(f"LoRA into {layers} layers", lambda all: all["injection"]["milliseconds"], " ms"),
        row("loading one of the first adapters", lambda all: all["loading"]["first_milliseconds"], " ms"),
        row("loading one of the last adapters", lambda all: all["loading"]["last_milliseconds"], " ms"),
        row("mixed batch of 8 adapters, to a batch with one", lambda all: all["mixed_batch"]["ratio"], ""),
        row("unmerged adapter, to the base, 256 rows", lambda all: all["overhead"]["ratio"], ""),
    ]


def first_line(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def processor() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"model name\s*: (.*)", text)
    return name.group(1) if name else platform.machine()


def candle_version() -> str:
    lock = pathlib.Path("Cargo.lock").read_text(encoding="utf-8")
    found = re.search(r'name = "candle-core"\nversion = "(.*)"', lock)
    return found.group(1) if found else "unknown"


def build(path: pathlib.Path) -> str:
    """What PyTorch was built for, where that makes its imports larger."""
    results = [json.loads(line)["result"] for line in path.read_text(encoding="utf-8").splitlines()]
    cuda = next((result["cuda"] for result in results if result.get("cuda")), None)
    return f" (a build for CUDA {cuda}, used or not)" if cuda else ""


def circumstances(arguments, found: dict) -> list[str]:
    results = [result for programs in found.values() for result in programs.values()]
    imported = max(map(imports, results), default=0)
    note = (
        f" Of PyTorch's, about {imported:,.0f} MiB are there once its modules are imported and before there is a model"
        f"{build(arguments.work / 'results')}; the last column of the ratios leaves them out."
        if imported
        else ""
    )
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "peft"))
    commit = first_line("git", "rev-parse", "--short", "HEAD")
    return [
        f"{processor()}, {os.cpu_count()} cores, {arguments.threads} threads for every program. {versions}; candle "
        f"{candle_version()}; {first_line('rustc', '--version')}; commit {commit}, {datetime.date.today()}.",
        "",
        f"Programs take turns, rounds in one go: {arguments.rounds}; a value is the median of the rounds. A step's seconds "
        f"are the median of {arguments.steps - 2} steps after two that do not count. Memory is the largest resident size of "
        f"the process.{note} "
        "SmolLM2-135M's sizes with random weights unless the row names another model, f32 unless it says bf16, LoRA of rank 8 on all seven projections, AdamW. plain candle is "
        "`examples/src/bin/stock_candle`, of candle's own differentiable ops.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    measured = medians(arguments.work / "results")
    generating = {name: programs for name, programs in measured.items() if name.startswith("generating")}
    found = {name: programs for name, programs in measured.items() if name not in generating}
    lines = [BEGIN, "", *circumstances(arguments, found), *ratios_table(found), "", *steps_table(found)]
    lines += generation_table(generating)
    lines += [*adapters_table(arguments.work), "", END]
    section = "\n".join(lines)
    text = arguments.out.read_text(encoding="utf-8") if arguments.out.exists() else f"# Performance\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN, 1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(before + section + rest.split(END, 1)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
