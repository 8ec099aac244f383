"""Writes golden.bin: NF4, double quantisation and int8 as bitsandbytes makes them on the CPU.

    python make_golden.py        (made with torch 2.11.0, bitsandbytes 0.50.2)

Records: u32 length of the name, name, u8 dtype (0 f32, 1 bf16, 2 u8, 3 i8), u32 ndim, u32 extents,
bytes; little-endian. Read by tests/quant/golden_file.h.
"""
import struct
from pathlib import Path

import bitsandbytes.functional as F
import torch

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2, torch.int8: 3}
records = []
torch.manual_seed(20)
torch.set_num_threads(1)


def add(name, tensor):
    tensor = tensor.detach().contiguous()
    raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    header = struct.pack("<I", len(name)) + name.encode()
    header += struct.pack("<BI", DTYPES[tensor.dtype], tensor.dim())
    records.append(header + struct.pack(f"<{tensor.dim()}I", *tensor.shape) + raw)


def add_nf4(name, x, block_size, nested=False, dequantized=False, quant_type="nf4"):
    codes, state = F.quantize_4bit(x, blocksize=block_size, quant_type=quant_type, compress_statistics=nested)
    # f16 has no record type: it widens to f32 without loss.
    add(f"{name}/x", x.float() if x.dtype == torch.float16 else x)
    add(f"{name}/codes", codes.reshape(-1))
    if nested:
        add(f"{name}/offset", state.offset.reshape(1))
        add(f"{name}/absmax_codes", state.absmax)
        add(f"{name}/nested_absmax", state.state2.absmax)
    else:
        add(f"{name}/absmax", state.absmax)
    if dequantized:
        add(f"{name}/dequantized", F.dequantize_4bit(codes, state))
        state.dtype = torch.bfloat16
        add(f"{name}/dequantized_bf16", F.dequantize_4bit(codes, state))


def block_size_cases():
    for block_size in (32, 64, 128, 256, 512, 1024, 2048, 4096):
        dtype = torch.float32 if block_size <= 512 else torch.bfloat16
        n = (2 if block_size <= 1024 else 1) * block_size + block_size // 3 // 2 * 2 + 1
        x = torch.randn(n) * 0.03
        x[::97] *= 20
        add_nf4(f"nf4/{block_size}", x.to(dtype), block_size)
    for n in (1, 2, 17, 63, 64, 65):
        add_nf4(f"nf4/n{n}/64", torch.randn(n), 64)
    add_nf4("nf4/f16/64", (torch.randn(333) * 0.05).half(), 64)


def tie_case():
    """Midpoints and their neighbours, under absmax of 1, of a power of two and of 3."""
    table = F.get_4bit_type("nf4", device="cpu")
    middle = (table[:-1] + table[1:]) / 2
    blocks = []
    for absmax in (1.0, 2.0**-20, 2.0**30, 3.0):
        v = middle * absmax
        around = [v, torch.nextafter(v, torch.tensor(1e38)), torch.nextafter(v, torch.tensor(-1e38))]
        block = torch.cat([torch.tensor([absmax]), *around])
        blocks.append(torch.cat([block, -block[: 64 - block.numel()]]))
    x = torch.cat(blocks)
    add_nf4("nf4/ties/64", x, 64, dequantized=True)
    # The same in a short last block, which divides where a full one multiplies.
    add_nf4("nf4/ties/4096", x[:192], 4096)
    add_nf4("nf4/ties/128", torch.cat([x, x[192:]]), 128)


def extreme_case():
    x = torch.randn(12, 64)
    scales = [0, 1e-45, 1e-42, 1e-39, 9e-39, 1.2e-38, 1e-37, 1e-20, 1e20, 1e37, 1e38, 0]
    for row, scale in enumerate(scales):
        x[row] = x[row] * scale
    x[10, 5] = torch.finfo(torch.float32).max
    x[3, :32] = -0.0
    add_nf4("nf4/extreme/64", x.reshape(-1), 64)
    add_nf4("nf4/extreme/32", x.reshape(-1)[:-7], 32)
    add_nf4("nf4/zero_tail/64", torch.cat([torch.randn(64), torch.zeros(9)]), 64)


def whole_tensor_cases():
    add_nf4("nf4/weight/64", (torch.randn(97, 130) * 0.02).bfloat16(), 64)
    add_nf4("nested/weight/32", (torch.randn(129, 70) * 0.02).bfloat16(), 32, nested=True)


def nested_cases():
    absmax = torch.randn(5003, 64).abs().amax(1) * 0.02
    offset = absmax.mean()
    codes, state = F.quantize_blockwise(absmax - offset, blocksize=256)
    add("nested/values/absmax", absmax)
    add("nested/values/offset", offset.reshape(1))
    add("nested/values/absmax_codes", codes)
    add("nested/values/nested_absmax", state.absmax)
    add("nested/values/dequantized", F.dequantize_blockwise(codes, state) + offset)
    add("map/signed", F.create_dynamic_map(True))
    add("map/unsigned", F.create_dynamic_map(False))


def int8_cases():
    x = (torch.randn(17, 65) * 0.05).half()
    x[3] = 0
    x[5, 7] = 3.0
    codes, absmax, _ = F.int8_vectorwise_quant(x)
    codes[3] = 0  # 0 * inf there is NaN, whose cast is undefined
    add("int8/fp16/x", x.float())
    add("int8/fp16/codes", codes)
    add("int8/fp16/absmax", absmax)
    x = torch.randn(9, 130)
    x[0] = torch.arange(-65, 65) / 2  # ties: absmax 32.5 gives no tie, 63.5 does
    x[0, 0] = 63.5
    codes, absmax, _ = F.int8_vectorwise_quant(x)
    add("int8/fp32/x", x)
    add("int8/fp32/codes", codes)
    add("int8/fp32/absmax", absmax)


def fp4_cases():
    for block_size in (32, 64, 4096):
        x = torch.randn((1 if block_size > 1000 else 2) * block_size + 17) * 0.03
        x[::97] *= 20
        add_nf4(f"fp4/{block_size}", x.to(torch.bfloat16), block_size, quant_type="fp4")
    table = F.get_4bit_type("fp4", device="cpu").sort().values
    middle = (table[:-1] + table[1:]) / 2
    blocks = []
    for absmax in (1.0, 2.0**-20, 3.0):
        v = middle * absmax
        around = [v, torch.nextafter(v, torch.tensor(1e38)), torch.nextafter(v, torch.tensor(-1e38))]
        block = torch.cat([torch.tensor([absmax]), *around])
        blocks.append(torch.cat([block, -block[: 64 - block.numel()]]))
    blocks += [torch.zeros(64), torch.full((64,), -0.0), torch.zeros(9)]
    add_nf4("fp4/ties/64", torch.cat(blocks), 64, dequantized=True, quant_type="fp4")
    add_nf4("fp4/f16/64", (torch.randn(333) * 0.05).half(), 64, quant_type="fp4")
    add_nf4("nested/fp4/32", (torch.randn(65, 70) * 0.02).bfloat16(), 32, nested=True, quant_type="fp4")


block_size_cases()
tie_case()
extreme_case()
whole_tensor_cases()
nested_cases()
int8_cases()
fp4_cases()
path = Path(__file__).with_name("golden.bin")
path.write_bytes(b"".join(records))
print(path, path.stat().st_size, "bytes,", len(records), "tensors")
