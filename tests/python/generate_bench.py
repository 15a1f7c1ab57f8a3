"""The `generate_bench` example in PyTorch and PEFT, for comparison.

    python tests/python/generate_bench.py [--shape smollm2-135m] [--prompt 512] [--tokens 64] [--threads 2] [--dtype bf16]

A Llama with random weights and LoRA on all seven projections, not merged, reads a prompt in one go and then continues it token by token.
The last line of standard output is one JSON object with the keys of the Rust example.
"""

import argparse
import json
import statistics
import time

import peft
import torch
import transformers

from train_bench import PROJECTIONS, SHAPES, language_model, peak_rss_mb, rss_mb


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()

    imported = rss_mb()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    model = peft.get_peft_model(language_model(arguments.shape).to(dtype), peft.LoraConfig(
        r=arguments.rank, lora_alpha=2 * arguments.rank, target_modules=PROJECTIONS, task_type="CAUSAL_LM",
        init_lora_weights=False,
    ))
    model.eval()
    prompt = torch.randint(SHAPES[arguments.shape][0], (1, arguments.prompt))

    def read(ids, cache):
        return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    prompts, steps = [], []
    with torch.inference_mode():
        for number in range(arguments.rounds + 1):
            start = time.perf_counter()
            read(prompt, transformers.DynamicCache())
            if number:
                prompts.append(time.perf_counter() - start)
        out = read(prompt[:, :16], transformers.DynamicCache())
        for _ in range(arguments.tokens):
            start = time.perf_counter()
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            out = read(token, out.past_key_values)
            steps.append(time.perf_counter() - start)
    seconds, token = statistics.median(prompts), statistics.median(steps)
    print(f"{seconds:.3f} s for a prompt of {arguments.prompt} tokens, {1e3 * token:.1f} ms a token")
    print(json.dumps({
        "prompt_seconds": seconds,
        "token_seconds": token,
        "tokens_per_second": 1 / token,
        "peak_rss_mb": peak_rss_mb(),
        "imports_rss_mb": imported,
    }))


if __name__ == "__main__":
    main()
