"""The training step of the `train_bench` example in PyTorch and PEFT, for comparison.

    python tests/python/train_bench.py [--shape smollm2-135m] [--batch 1] [--seq 256] [--steps 10] [--threads 2] \
        [--dtype bf16] --json

LoRA on all seven projections of a Llama with random weights, with AdamW; the base model is in f32, or in bf16 with factors in f32. The last line of standard output is the JSON
object that the Rust example prints, with the resident size after the imports as `imports_rss_mb` and the CUDA version that PyTorch
was built for as `cuda`; the share of matrix products comes from one more step under PyTorch's profiler.
"""

import argparse
import json
import resource
import statistics
import sys
import time

import peft
import torch
import transformers

LEFT_OUT = 2

# Vocabulary, hidden size, feed-forward size, blocks, heads, heads of keys and values; as in `examples/src/shapes.rs`.
SHAPES = {
    "tiny": (256, 64, 160, 2, 4, 2),
    "smollm2-135m": (49152, 576, 1536, 30, 9, 3),
    "smollm2-360m": (49152, 960, 2560, 32, 15, 5),
    "qwen2.5-0.5b": (151936, 896, 4864, 24, 14, 2),
    "llama3.2-1b": (128256, 2048, 8192, 16, 32, 8),
}

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# The operations that multiply matrices; the fused attention is not one of them.
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}


def language_model(shape: str) -> transformers.PreTrainedModel:
    """A model with random weights; the Qwen has biases on queries, keys and values."""
    vocabulary, hidden, wide, blocks, heads, key_value_heads = SHAPES[shape]
    kind, config = transformers.LlamaForCausalLM, transformers.LlamaConfig
    if shape.startswith("qwen"):
        kind, config = transformers.Qwen2ForCausalLM, transformers.Qwen2Config
    return kind(config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=wide, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=key_value_heads, rms_norm_eps=1e-5,
        tie_word_embeddings=True, use_cache=False,
    ))


def rss_mb() -> int | None:
    """The memory of the process now; after the imports, what the imports take."""
    try:
        with open("/proc/self/status", encoding="utf-8") as status:
            return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmRSS:"))
    except OSError:
        return None


def peak_rss_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def product_share(step) -> float:
    """The share of one step's time in matrix products."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
    events = profile.key_averages()
    return sum(event.self_cpu_time_total for event in events if event.key in PRODUCTS) / 1e6 / seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.steps <= LEFT_OUT:
        parser.error(f"--steps has to be above {LEFT_OUT}: the first steps are not measured")

    imported = rss_mb()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    model = peft.get_peft_model(language_model(arguments.shape).to(dtype), peft.LoraConfig(
        r=arguments.rank, lora_alpha=2 * arguments.rank, target_modules=PROJECTIONS, task_type="CAUSAL_LM",
    ))
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=arguments.lr)
    vocabulary = SHAPES[arguments.shape][0]

    def step() -> float:
        tokens = torch.randint(vocabulary, (arguments.batch, arguments.seq))
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    seconds = []
    for number in range(arguments.steps):
        start = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - start)
        print(f"step {number + 1}: loss {loss:.4f}, {seconds[-1]:.3f} s", file=sys.stderr)
    median = statistics.median(seconds[LEFT_OUT:])
    memory = peak_rss_mb()
    print(f"{median:.3f} s a step (median of {len(seconds) - LEFT_OUT}), {memory} MiB at most")
    if arguments.json:
        print(json.dumps({
            "seconds_per_step": median,
            "peak_rss_mb": memory,
            "tokens_per_second": arguments.batch * arguments.seq / median,
            "matmul_share": product_share(step),
            "imports_rss_mb": imported,
            "cuda": torch.version.cuda,
        }))


if __name__ == "__main__":
    main()
