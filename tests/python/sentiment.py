"""The `sentiment` example's recipe in PyTorch and PEFT, for comparison.

    python tests/python/sentiment.py --model DIR --data FILE [--method lora] [--epochs 1] [--seed 0] [--threads 2]

The last line of standard output is the same JSON object that the Rust example prints.
"""

import argparse
import json
import random
import resource
import sys
import time

import peft
import torch
import transformers

HELD_OUT = 2000


class SentimentModel(torch.nn.Module):
    """An encoder, the mean over its tokens, and a linear head."""

    def __init__(self, folder: str):
        super().__init__()
        self.bert = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
        self.classifier = torch.nn.Linear(self.bert.config.hidden_size, 2)

    def forward(self, input_ids, attention_mask):
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.float() / attention_mask.float().sum(1, keepdim=True)
        return self.classifier((weights.unsqueeze(-1) * hidden).sum(1))


def read(path: str):
    texts, labels = [], []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            _, rating, text = line.rstrip("\n").split("\t", 2)
            if float(rating) != 0:
                texts.append(text.strip())
                labels.append(int(float(rating) > 0))
    return texts, labels


def orthogonality(model):
    """AdaLoRA's term of the loss, which PEFT itself adds only if a model's output has a loss."""
    distances = []
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            distances.append(torch.norm(gram - torch.eye(gram.shape[0])))
    return model.peft_config["default"].orth_reg_weight * sum(distances) / len(distances)


def config(method: str, steps: int):
    common = {"modules_to_save": ["classifier"]}
    if method == "lora":
        return peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], **common)
    if method == "adalora":
        return peft.AdaLoraConfig(
            init_r=12, target_r=8, lora_alpha=16, target_modules=["query", "value"], total_step=steps,
            tinit=steps // 10, tfinal=steps // 3, deltaT=5, **common,
        )
    return peft.IA3Config(
        target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"], **common
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--method", choices=["lora", "adalora", "ia3"], default="lora")
    parser.add_argument("--lr", type=float, help="4e-3 for lora, 2e-3 for adalora, 5e-3 for ia3 if it is not given")
    parser.add_argument("--schedule", choices=["constant", "linear"], default="linear")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-len", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    texts, labels = read(arguments.data)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    tokens = tokenizer(texts, truncation=True, max_length=arguments.max_len)["input_ids"]
    order = list(range(len(labels)))
    random.Random(arguments.seed).shuffle(order)
    training, held_out = order[:-HELD_OUT][: arguments.limit], order[-HELD_OUT:]
    held_out.sort(key=lambda index: len(tokens[index]))

    def batch(indices):
        length = max(len(tokens[index]) for index in indices)
        ids = torch.zeros(len(indices), length, dtype=torch.long)
        mask = torch.zeros(len(indices), length, dtype=torch.long)
        for row, index in enumerate(indices):
            ids[row, : len(tokens[index])] = torch.tensor(tokens[index])
            mask[row, : len(tokens[index])] = 1
        return ids, mask, torch.tensor([labels[index] for index in indices])

    def batches(indices):
        return [indices[start : start + arguments.batch] for start in range(0, len(indices), arguments.batch)]

    steps = arguments.epochs * len(batches(training))
    model = peft.get_peft_model(SentimentModel(arguments.model), config(arguments.method, steps))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    learning_rate = arguments.lr or {"lora": 4e-3, "adalora": 2e-3, "ia3": 5e-3}[arguments.method]
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate)
    schedule = transformers.get_scheduler(
        arguments.schedule, optimizer, num_warmup_steps=steps * 6 // 100, num_training_steps=steps
    )

    def accuracy():
        model.eval()
        right = 0
        with torch.no_grad():
            for indices in batches(held_out):
                ids, mask, target = batch(indices)
                right += (model(ids, mask).argmax(-1) == target).sum().item()
        return right / len(held_out)

    print(f"accuracy before training: {accuracy():.4f}", file=sys.stderr)
    start, step = time.time(), 0
    for epoch in range(arguments.epochs):
        model.train()
        random.Random(arguments.seed + epoch).shuffle(training)
        for indices in batches(training):
            ids, mask, target = batch(indices)
            loss = torch.nn.functional.cross_entropy(model(ids, mask), target)
            if arguments.method == "adalora":
                loss = loss + orthogonality(model)
            loss.backward()
            optimizer.step()
            schedule.step()
            if arguments.method == "adalora":
                model.base_model.update_and_allocate(step)
            optimizer.zero_grad()
            step += 1
        print(f"accuracy after epoch {epoch + 1}: {accuracy():.4f}", file=sys.stderr)
    print(json.dumps({
        "accuracy": accuracy(),
        "seconds": time.time() - start,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "trainable": sum(parameter.numel() for parameter in trainable),
    }))


if __name__ == "__main__":
    main()
