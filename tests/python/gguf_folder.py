"""Makes a HuggingFace folder from a GGUF file: `config.json`, `model.safetensors` in bfloat16, `tokenizer.json`.

    python tests/python/gguf_folder.py FILE.gguf FOLDER
"""

import json
import pathlib
import sys

import safetensors.torch
import torch
import transformers

if len(sys.argv) != 3:
    sys.exit(__doc__)
file, folder = map(pathlib.Path, sys.argv[1:])
source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name, "local_files_only": True}
model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
tokenizer = transformers.AutoTokenizer.from_pretrained(**source)

folder.mkdir(parents=True, exist_ok=True)
# `model.save_pretrained` refuses a model that was quantized, although its weights are dense now.
config = model.config.to_diff_dict()
config.pop("quantization_config", None)
(folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in model.state_dict().items() if name not in tied}
safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
