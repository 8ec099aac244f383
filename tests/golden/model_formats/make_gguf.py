"""Writes tiny.gguf and tiny.gguf.f32 with the gguf package (0.19.0): one tensor of every decoder.

The second file holds the float32 values of gguf.quants.dequantize, tensor after tensor. The package
cannot quantise to the K types and IQ4_NL: their blocks are random bytes with finite scales.
Run: python make_gguf.py
"""
import numpy as np
import gguf
from gguf.quants import dequantize, quantize

rng = np.random.default_rng(7)
types = gguf.GGMLQuantizationType
writer = gguf.GGUFWriter("tiny.gguf", "llama")
writer.add_uint32("llama.block_count", 2)
writer.add_uint64("llama.context_length", 8192)
writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
writer.add_bool("tokenizer.ggml.add_bos_token", False)
writer.add_string("tokenizer.ggml.model", "gpt2")
writer.add_int8("test.minus", -3)
writer.add_float64("test.f64", 0.1)
writer.add_array("tokenizer.ggml.tokens", ["a", "é", ""])
writer.add_array("tokenizer.ggml.token_type", [1, 3, 1])
writer.add_array("tokenizer.ggml.scores", [0.5, -1.25])
writer.add_array("test.flags", [True, False])

expected = []
for name, kind, shape in [
    ("f32", types.F32, (3, 5)),
    ("f16", types.F16, (3, 5)),
    ("bf16", types.BF16, (7,)),
    ("q8_0", types.Q8_0, (4, 64)),
    ("q4_1", types.Q4_1, (2, 3, 96)),
]:
    x = (rng.standard_normal(shape) * 3).astype(np.float32)
    x.flat[0] = -65.5
    raw = quantize(x, kind)
    if kind == types.F16:  # subnormals and the largest half
        x.flat[1:4] = [6e-8, -6.0e-5, 65504]
        raw = x.astype(np.float16)
    writer.add_tensor(name, raw, raw_dtype=kind)
    expected.append(dequantize(raw, kind).astype(np.float32).ravel())
for name in ["Q4_0", "Q5_0", "Q5_1"]:
    x = (rng.standard_normal((2, 64)) * 3).astype(np.float32)
    x[1, 32:] = 0
    raw = quantize(x, types[name])
    writer.add_tensor(name.lower(), raw, raw_dtype=types[name])
    expected.append(dequantize(raw, types[name]).ravel())
# Where the F16 scales of a block stand.
for name, scales in [("Q2_K", (80, 82)), ("Q3_K", (108,)), ("Q4_K", (0, 2)), ("Q5_K", (0, 2)),
                     ("Q6_K", (208,)), ("IQ4_NL", (0,))]:
    kind = types[name]
    values, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (2, 2, size), dtype=np.uint8)
    for at in scales:
        d = (rng.standard_normal((2, 2, 1)) * 0.1).astype(np.float16)
        d[1, 1] = 6e-8  # a subnormal
        raw[:, :, at : at + 2] = d.view(np.uint8)
    raw = raw.reshape(2, 2 * size)
    writer.add_tensor(name.lower(), raw, raw_dtype=kind)
    expected.append(dequantize(raw, kind).ravel())
undecoded = quantize(rng.standard_normal((2, 256)).astype(np.float32), types.TQ1_0)
writer.add_tensor("tq1_0", undecoded, raw_dtype=types.TQ1_0)

writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
np.concatenate(expected).astype("<f4").tofile("tiny.gguf.f32")
