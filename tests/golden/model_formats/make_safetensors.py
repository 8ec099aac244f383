"""Writes tiny.safetensors with the safetensors package (0.8.0) and torch (2.11).

Run: python make_safetensors.py
"""
import torch
from safetensors.torch import save_file

save_file(
    {
        "b.weight": torch.tensor([[1.5, -2.0, 3.25], [0.0, -0.0, 1e-8]]),
        "a.half": torch.tensor([1.0, 65504.0, 6e-8, float("inf")], dtype=torch.float16),
        "a.bf16": torch.tensor([1.0, -3.0, 1e38], dtype=torch.bfloat16),
        "c.codes": torch.tensor([0, 127, 255], dtype=torch.uint8),
        "c.signed": torch.tensor([-128, 127], dtype=torch.int8),
        "d.ids": torch.tensor([1, -(2**40)], dtype=torch.int64),
        "e.scalar": torch.tensor(2.5),
        "f.empty": torch.zeros(0, 4),
    },
    "tiny.safetensors",
    metadata={"format": "pt"},
)
