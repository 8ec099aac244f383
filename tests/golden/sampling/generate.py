"""Probabilities after transformers' logits warpers (temperature, top-k, top-p), in float64.

Run with the environment of tests/parity/setup.sh: python tests/golden/sampling/generate.py
Writes expected.safetensors: logits_i [V] f32, options_i [temperature, top_k, top_p] f32 (top_k 0 and
top_p 1: not used), probabilities_i [V] f32. Made with torch 2.11.0, transformers 5.23.0.
"""
import os
import torch
from safetensors.torch import save_file
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

HERE = os.path.dirname(os.path.abspath(__file__))


def warped(logits, temperature, top_k, top_p):
    scores = logits.double()[None]
    scores = TemperatureLogitsWarper(temperature)(None, scores)
    if top_k > 0:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.softmax(-1)[0]


def main():
    torch.manual_seed(11)
    rows = {
        "flat": torch.randn(300) * 0.5,
        "sharp": torch.randn(300) * 6.0,
        "large": torch.randn(1000) * 3.0 + 40.0,
        "tied": torch.randint(-4, 5, (120,)).float(),  # top-k keeps what equals the last one
        "masked": torch.where(torch.rand(50) < 0.5, -torch.inf, torch.randn(50)),
    }
    options = [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.7, 12, 1.0), (1.0, 1, 1.0), (0.9, 0, 0.9),
               (1.0, 0, 0.05), (0.6, 40, 0.8), (2.5, 5, 0.999), (1.0, 5000, 1.0)]
    tensors = {}
    for name, logits in rows.items():
        for temperature, top_k, top_p in options:
            if name == "tied" and top_p < 1.0:
                continue  # which of equal tokens are the last ones is nobody's promise
            given = torch.tensor([temperature, top_k, top_p], dtype=torch.float32)
            i = len(tensors) // 3
            tensors[f"logits_{i}"] = logits.float()
            tensors[f"options_{i}"] = given
            t, k, p = (float(v) for v in given)
            tensors[f"probabilities_{i}"] = warped(logits, t, int(k), p).float()
    save_file({k: v.clone() for k, v in tensors.items()}, os.path.join(HERE, "expected.safetensors"))


main()
