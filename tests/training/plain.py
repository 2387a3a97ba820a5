"""Run on its own: what transformers and peft alone make of checkpoints and merged models. No code of this project."""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

results = []
for job in json.loads(sys.argv[1]):
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    prompt = tokenizer.apply_chat_template(job["messages"], add_generation_prompt=True, return_dict=False)
    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in job["responses"]]
    rows = [[*prompt, *ids, tokenizer.eos_token_id] for ids in texts]
    width = max(map(len, rows))
    padded = {
        "input_ids": torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }
    source = job["base"] or job["folder"]
    if job["kind"] == "reward":
        labels = {"num_labels": 1} if job["base"] else {}
        model = AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.float32, **labels)
    else:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    if job["base"]:
        model = PeftModel.from_pretrained(model, job["folder"])
    with torch.no_grad():
        logits = model.eval()(**padded).logits
    if job["kind"] == "reward":
        found = logits[:, 0]
    else:
        found = torch.log_softmax(logits, -1).max(-1).values[padded["attention_mask"].bool()]
        found = torch.cat([found, logits[0, -1, :100], logits[0, len(prompt), -100:]])
    results.append({"rows": rows, "found": found.tolist()})

assert not {"training", "data", "labeler"} & set(sys.modules)
print(json.dumps(results))
