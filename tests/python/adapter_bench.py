"""What the `adapter_bench` example measures, in PyTorch and PEFT, for comparison.

    python tests/python/adapter_bench.py [--shape smollm2-135m] [--adapters 64] [--rounds 9] [--threads 2]

Each line of standard output is one JSON object, as the Rust example prints it.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time

import peft
import torch

from train_bench import PROJECTIONS, SHAPES, llama

ROWS, LENGTH = 8, 32


def config(rank: int, init: bool) -> peft.LoraConfig:
    return peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=PROJECTIONS, init_lora_weights=init)


def milliseconds(action) -> float:
    start = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - start)


def compared(what: str, rounds: int, plain, other) -> dict:
    """The medians of two computations that take turns, and the ratio of the second to the first."""
    plain()
    other()
    pairs = [(milliseconds(plain), milliseconds(other)) for _ in range(rounds)]
    of_plain, of_other = (statistics.median(times) for times in zip(*pairs))
    return {
        "measured": what, "plain_milliseconds": of_plain, "milliseconds": of_other, "ratio": of_other / of_plain,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    vocabulary = SHAPES[arguments.shape][0]

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    def report(measured: dict) -> None:
        print(json.dumps(measured), flush=True)

    say("injecting")
    times = []
    base = llama(arguments.shape).eval()
    for _ in range(min(arguments.rounds, 3) + 1):
        times.append(milliseconds(lambda: peft.inject_adapter_in_model(config(arguments.rank, True), base)))
        layers = sum(isinstance(module, peft.tuners.lora.LoraLayer) for module in base.modules())
        base = llama(arguments.shape).eval()
    report({"measured": "injection", "layers": layers, "milliseconds": statistics.median(times[1:])})

    say(f"loading {arguments.adapters} adapters")
    with tempfile.TemporaryDirectory() as folder:
        model = peft.get_peft_model(llama(arguments.shape), config(arguments.rank, False))
        model.save_pretrained(folder)
        model = peft.PeftModel.from_pretrained(llama(arguments.shape), folder, adapter_name="adapter0").eval()
        times = [
            milliseconds(lambda: model.load_adapter(folder, f"adapter{number}"))
            for number in range(1, arguments.adapters)
        ]
    eighth = max(arguments.adapters // 8, 1)
    first, last = statistics.median(times[:eighth]), statistics.median(times[-eighth:])
    report({
        "measured": "loading", "first_milliseconds": first, "last_milliseconds": last, "ratio": last / first,
        "milliseconds": times,
    })

    with torch.no_grad():
        say("mixed batches")
        tokens = torch.randint(vocabulary, (ROWS, LENGTH))
        names = [f"adapter{number}" for number in range(ROWS)]
        model.set_adapter("adapter0")
        decoder = model.base_model.model.model
        report(compared(
            "mixed_batch", arguments.rounds,
            lambda: decoder(input_ids=tokens),
            lambda: mixed(model, decoder, tokens, names),
        ))

        say("inference without merging")
        tokens = torch.randint(vocabulary, (1, ROWS * LENGTH))
        adapted = peft.get_peft_model(llama(arguments.shape), config(arguments.rank, False)).eval()
        adapted = adapted.base_model.model.model
        plain = base.model
        report(compared(
            "overhead", arguments.rounds, lambda: plain(input_ids=tokens), lambda: adapted(input_ids=tokens),
        ))


def mixed(model, decoder, tokens, names):
    """The hidden states with one adapter per row. PEFT routes in the whole model's forward pass; this does the same."""
    with model.base_model._enable_peft_forward_hooks(adapter_names=names):
        return decoder(input_ids=tokens)


if __name__ == "__main__":
    main()
