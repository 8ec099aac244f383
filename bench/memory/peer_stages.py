"""The peer's side of stages.py: PEFT's LoRA in bf16 under a DeepSpeed ZeRO stage on CPUs, one process
per rank (RANK, WORLD_SIZE and MASTER_* in the environment). Weights are random. Rank 0 prints one
JSON object: peak resident bytes of every rank, as the kernel counts them."""
import json
import os
import resource
import sys

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import deepspeed
import peft
import torch
import transformers


def make_model(settings, config):
    model_config = transformers.LlamaConfig(**settings["model"])
    lora = peft.LoraConfig(r=settings["lora_rank"], lora_alpha=2 * settings["lora_rank"],
                           target_modules="all-linear", task_type="CAUSAL_LM")
    sharded = settings["stage"] == 3
    with deepspeed.zero.Init(config_dict_or_path=config, enabled=sharded):
        model = transformers.AutoModelForCausalLM.from_config(model_config, dtype=torch.bfloat16)
        model = peft.get_peft_model(model, lora, autocast_adapter_dtype=False)
    if settings["recompute"]:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    return model.train()


def main():
    settings = json.load(open(sys.argv[1]))
    torch.set_num_threads(settings["threads"])
    deepspeed.init_distributed("gloo", verbose=False)
    world = torch.distributed.get_world_size()
    config = {
        "train_micro_batch_size_per_gpu": settings["micro"], "gradient_accumulation_steps": 1,
        "bf16": {"enabled": True}, "gradient_clipping": 1.0,
        "zero_optimization": {"stage": settings["stage"]}, "zero_force_ds_cpu_optimizer": False}
    model = make_model(settings, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    generator = torch.Generator().manual_seed(7 + engine.global_rank)
    for _ in range(settings["steps"]):
        ids = torch.randint(0, settings["model"]["vocab_size"],
                            (settings["micro"], settings["length"]), generator=generator)
        loss = engine(input_ids=ids, labels=ids, use_cache=False).loss
        engine.backward(loss)
        engine.step()
    peak = torch.tensor([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0],
                        dtype=torch.float64)
    peaks = [torch.zeros_like(peak) for _ in range(world)]
    torch.distributed.all_gather(peaks, peak)
    if engine.global_rank == 0:
        json.dump([int(p.item()) for p in peaks], open(settings["result"], "w"))


main()
