"""Loads an adapter that the `llama` example saved into PyTorch and PEFT, on the same GGUF file made dense, and prints its loss.

    python tests/python/llama_adapter.py --gguf FILE.gguf [--adapter DIR] [--data FILE.txt] [--seq 256]

The loss is that on the held-out text, as the example computes it: it has to agree with the `held_out_after` that the example
printed and, without `--adapter`, with its `held_out_before`. For files with the names and the tokenizer of SmolLM2.
"""

import argparse
import json
import pathlib

import gguf
import numpy
import peft
import tokenizers
import torch
import transformers

ALICE = pathlib.Path(__file__).parents[2] / "examples/data/alice.txt"
HELD_OUT, MOST_WINDOWS = 10, 16

MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def field(file: gguf.GGUFReader, key: str):
    return file.fields[key].contents()


def halves_apart(weight, heads: int):
    """llama.cpp has the two rows that rotate together side by side, transformers half a head apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def model(file: gguf.GGUFReader) -> transformers.LlamaForCausalLM:
    heads, shared = field(file, "llama.attention.head_count"), field(file, "llama.attention.head_count_kv")
    config = transformers.LlamaConfig(
        vocab_size=len(field(file, "tokenizer.ggml.tokens")),
        hidden_size=field(file, "llama.embedding_length"),
        intermediate_size=field(file, "llama.feed_forward_length"),
        num_hidden_layers=field(file, "llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=shared,
        max_position_embeddings=field(file, "llama.context_length"),
        rms_norm_eps=field(file, "llama.attention.layer_norm_rms_epsilon"),
        rope_theta=field(file, "llama.rope.freq_base"),
        tie_word_embeddings=True,
    )
    state = {}
    for tensor in file.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32).reshape(shape)
        parts = tensor.name.split(".")
        if parts[0] == "token_embd":
            name = "model.embed_tokens.weight"
        elif parts[0] == "output_norm":
            name = "model.norm.weight"
        else:
            _, block, module, _ = parts
            name = f"model.layers.{block}.{MODULES[module]}.weight"
            if module in ("attn_q", "attn_k"):
                weight = halves_apart(weight, heads if module == "attn_q" else shared)
        state[name] = torch.tensor(weight)
    llama = transformers.LlamaForCausalLM(config)
    missing, unexpected = llama.load_state_dict(state, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected, (missing, unexpected)
    return llama.eval()


def tokenizer(file: gguf.GGUFReader) -> tokenizers.Tokenizer:
    assert field(file, "tokenizer.ggml.pre") == "smollm"
    tokens, kinds = field(file, "tokenizer.ggml.tokens"), field(file, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in field(file, "tokenizer.ggml.merges")]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    made.add_special_tokens([token for token, kind in zip(tokens, kinds) if kind == 3])
    return made


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--adapter")
    parser.add_argument("--data", default=ALICE)
    parser.add_argument("--seq", type=int, default=256)
    arguments = parser.parse_args()
    file = gguf.GGUFReader(arguments.gguf)
    llama = model(file)
    if arguments.adapter:
        llama = peft.PeftModel.from_pretrained(llama, arguments.adapter).eval()
    text = pathlib.Path(arguments.data).read_text(encoding="utf-8")
    tokens = tokenizer(file).encode(text, add_special_tokens=False).ids
    held_out = tokens[len(tokens) - len(tokens) // HELD_OUT :]
    windows = [held_out[start : start + arguments.seq] for start in range(0, len(held_out), arguments.seq)]
    total, count = 0.0, 0
    with torch.no_grad():
        for window in windows[:MOST_WINDOWS]:
            if len(window) > 1:
                ids = torch.tensor([window])
                total += llama(input_ids=ids, labels=ids).loss.item() * (len(window) - 1)
                count += len(window) - 1
    print(json.dumps({"held_out_loss": total / count}))


if __name__ == "__main__":
    main()
