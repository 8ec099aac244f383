#!/usr/bin/env python3
"""R2: damaged safetensors files that shardtune reads are read by the reference reader too, with the
same tensors.

    SHARDTUNE_BINARY=build/release/launch/shardtune PYTHON tests/parity/readers_test.py

SHARDTUNE_READERS_FILES: how many files are tried (default 600; R2 asks for 100000)."""
import json
import os
import pathlib
import random
import struct
import subprocess
import tempfile
import unittest

import safetensors

from parity_test import BINARY

FILES = int(os.environ.get("SHARDTUNE_READERS_FILES", "600"))
SIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
         "BOOL": 1, "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1}
ODD = [0, 1, -1, 2, 7, 8, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 1.0, 2.5,
       "4", None, True, [], {}]


def whole_file(rng):
    """A header and data as save_file writes them: one to four tensors without a gap."""
    header, begin = {}, 0
    if rng.random() < 0.3:
        header["__metadata__"] = {"format": "pt"}
    for i in range(rng.randint(1, 4)):
        dtype = rng.choice(list(SIZES))
        shape = [rng.choice([0, 1, 2, 3, 5]) for _ in range(rng.randint(0, 3))]
        size = SIZES[dtype]
        for extent in shape:
            size *= extent
        header[rng.choice("abcdefgh") + str(i)] = {
            "dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}
        begin += size
    return header, bytes(rng.randrange(256) for _ in range(begin))


def damage_header(rng, header):
    names = [name for name in header if name != "__metadata__"]
    entry = header[rng.choice(names)]
    kind = rng.randrange(8)
    if kind == 0:
        entry["dtype"] = rng.choice([*SIZES, "F99", "f32", "C64", "F4", "F6_E2M3", "F8_E8M0", 5])
    elif kind == 1:
        entry["shape"] = rng.choice([[rng.choice(ODD)], entry["shape"] + [1], entry["shape"][1:],
                                     rng.choice(ODD)])
    elif kind == 2:
        entry["data_offsets"][rng.randrange(2)] = rng.choice(ODD)
    elif kind == 3:
        entry["data_offsets"] = [value + rng.choice([-8, -1, 1, 8]) for value in
                                 entry["data_offsets"]]
    elif kind == 4:
        entry.pop(rng.choice(list(entry)))
    elif kind == 5:
        entry[rng.choice(["more", "__metadata__", "strides"])] = rng.choice(ODD)
    elif kind == 6:
        header["__metadata__"] = rng.choice([{"a": 1}, {"a": None}, [], "x", None, {"a": "b"}])
    else:
        header["again"] = dict(entry)


def damaged_file(rng):
    header, data = whole_file(rng)
    where = rng.random()
    if where < 0.5:
        for _ in range(rng.choice([1, 1, 2])):
            try:
                damage_header(rng, header)
            except (TypeError, KeyError, IndexError, AttributeError):
                pass  # damaged already
    text = json.dumps(header).encode()
    text += b" " * rng.choice([0, -len(text) % 8, 1, 3])
    if 0.5 <= where < 0.75:
        changed = bytearray(text)
        for _ in range(rng.choice([1, 1, 3])):
            changed[rng.randrange(len(changed))] = rng.choice(b' {}[]",:0123456789eE.-\\ntf\xff\x00')
        text = bytes(changed)
    length = len(text)
    if 0.75 <= where < 0.85:
        length += rng.choice([-8, -1, 1, 8, 2**40, 2**63])
    file = struct.pack("<Q", length % 2**64) + text + data
    if 0.85 <= where < 0.93:
        file = file[:rng.randrange(len(file) + 1)]
    elif 0.93 <= where < 0.97:
        file += bytes(rng.randint(1, 9))
    return file


class OurReader:
    """tests/parity/list_tensors.cpp, one process for all files."""

    def __init__(self):
        program = pathlib.Path(BINARY).resolve().parents[1] / "tests/parity/list_tensors"
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tensors(self, path):
        """None where the file is refused."""
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if answer == 65:
            return None
        if not isinstance(answer, list):
            raise AssertionError(f"{path}: left with {answer}")
        return {tensor["name"]: (tensor["dtype"], tensor["shape"], tensor["bytes"])
                for tensor in answer}

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def their_tensors(file):
    try:
        tensors = safetensors.deserialize(file)
    except safetensors.SafetensorError as error:
        return str(error)
    return {name: (value["dtype"], value["shape"], len(value["data"])) for name, value in tensors}


class Readers(unittest.TestCase):
    def test_what_we_accept_the_reference_accepts(self):
        rng = random.Random(2)
        accepted = 0
        reader = OurReader()
        self.addCleanup(reader.close)
        with tempfile.TemporaryDirectory() as scratch:
            path = pathlib.Path(scratch) / "file.safetensors"
            for number in range(FILES):
                file = damaged_file(rng)
                path.write_bytes(file)
                ours = reader.tensors(path)
                if ours is None:
                    continue
                accepted += 1
                self.assertEqual(ours, their_tensors(file), f"file {number}: {file[:400]!r}")
        print(f"{accepted} of {FILES} files accepted by both")
        self.assertGreater(accepted, FILES // 20)
        self.assertLess(accepted, FILES)


if __name__ == "__main__":
    unittest.main(verbosity=2)
