"""The peer's side of run.py: transformers + PEFT (+ bitsandbytes) on given rows of ids. Prints one
JSON object: loss and seconds of every step."""
import json
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import peft
import torch
import transformers


def load(settings):
    dtype = getattr(torch, settings["dtype"])
    quantization = None
    if settings["quantization"] == "nf4":
        quantization = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        settings["model"], dtype=dtype, quantization_config=quantization,
        attn_implementation="sdpa", device_map={"": "cpu"})
    torch.manual_seed(settings["seed"])
    return peft.get_peft_model(model, peft.LoraConfig(
        r=settings["lora_rank"], lora_alpha=settings["lora_alpha"], target_modules="all-linear",
        task_type="CAUSAL_LM"))


def main():
    settings = json.load(open(sys.argv[1]))
    torch.set_num_threads(settings["threads"])
    model = load(settings).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings["learning_rate"], weight_decay=0.0,
                                  fused=True)
    if settings["compile"]:
        model = torch.compile(model)
    ids = torch.tensor(settings["rows"])
    losses, seconds = [], []
    for _ in range(settings["steps"]):
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    json.dump({"losses": losses, "seconds": seconds}, open(settings["result"], "w"))


main()
