"""Trains with the plain loop of a transformers tutorial, to check the speed of our baseline.

    python benchmarks/training/plain_loop.py '{"config": {...}, "ids": FILE, "offsets": FILE,
        "pad_id": 1, "window": 340, "batch_size": 4, "learning_rate": 1e-3, "device": "cpu",
        "dtype": "float32", "seconds": 60}'

This program imports nothing from this project. It prints JSON with the number of targets that it
trains on in one second. The first three steps are not timed.
"""

import json
import sys
import time

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

given = json.loads(sys.argv[1])
ids, offsets = np.load(given["ids"]).astype(np.int64), np.load(given["offsets"])
rows = np.full((len(offsets) - 1, given["window"]), given["pad_id"])
for number, row in enumerate(rows):
    row[: offsets[number + 1] - offsets[number]] = ids[offsets[number] : offsets[number + 1]]
lengths = torch.from_numpy(np.diff(offsets))
dataset = torch.utils.data.TensorDataset(torch.from_numpy(rows), lengths)
loader = torch.utils.data.DataLoader(dataset, batch_size=given["batch_size"], shuffle=True, drop_last=True)
half = given["dtype"] == "bfloat16"

model = Qwen3ForCausalLM(Qwen3Config(**given["config"])).to(given["device"]).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=given["learning_rate"], fused=True)
steps, tokens, started = 0, 0, 0.0
while not started or time.perf_counter() - started < given["seconds"]:
    for input_ids, length in loader:
        input_ids, length = input_ids.to(given["device"]), length.to(given["device"])
        padding = torch.arange(given["window"], device=given["device"]) >= length[:, None]
        with torch.autocast(torch.device(given["device"]).type, dtype=torch.bfloat16, enabled=half):
            loss = model(input_ids=input_ids, labels=input_ids.masked_fill(padding, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps, tokens, shown = steps + 1, tokens + int((length - 1).sum()), loss.item()
        if steps == 3:
            started, tokens = time.perf_counter(), 0
        if started and time.perf_counter() - started >= given["seconds"]:
            break
print(json.dumps({"tokens_per_second": tokens / (time.perf_counter() - started), "steps": steps, "loss": shown}))
