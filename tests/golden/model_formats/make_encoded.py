"""Writes encoded.bin with the gguf package (0.19.0): 1024 float32 values, then the bytes that its
quantize makes of them as F16, BF16 and Q8_0.

Run: python make_encoded.py
"""
import numpy as np
import gguf
from gguf.quants import quantize

types = gguf.GGMLQuantizationType
x = np.random.default_rng(11).standard_normal((16, 64)).astype(np.float32)
x[1] *= 1e-6   # subnormal halves, scales included
x[2, :32] = 0  # a scale of zero
x[3] *= 6e4 / np.abs(x[3]).max()
x[4, :32] = np.arange(32) + 0.5  # ties, with d = 1
x[4, 31] = -127
x[5, :4] = [65504, -0.0, 2.0**-25, 1 + 2.0**-11]
with open("encoded.bin", "wb") as out:
    out.write(x.tobytes())
    for kind in (types.F16, types.BF16, types.Q8_0):
        out.write(quantize(x, kind).tobytes())
