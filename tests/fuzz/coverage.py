#!/usr/bin/env python3
"""The table of tests/fuzz.sh coverage: of each file that reads files of strangers, the share of lines
that the inputs reached in the functions they entered, and the functions that none entered (writers,
what a trainer asks for later).

    tests/fuzz/coverage.py FUZZER MERGED.profdata
"""
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = ["io/json.cpp", "io/json_parse.cpp", "io/yaml_node.cpp", "io/yaml_number.cpp",
         "io/yaml_tree.cpp", "io/yaml_values.cpp", "io/safetensors.cpp", "io/safetensors_parse.cpp",
         "io/gguf.cpp", "io/gguf_parse.cpp", "io/block_file.cpp",
         "data/tokenizer_json.cpp", "data/tokenizer_folder.cpp", "data/added_tokens.cpp",
         "data/normalizer.cpp", "data/split_step.cpp", "data/tokenizer_gguf.cpp",
         "data/sentencepiece_model.cpp", "data/sentencepiece.cpp", "data/formats",
         "models/model_config.cpp", "models/llama_config.cpp", "models/rope_scaling.cpp",
         "models/gpt2.cpp", "models/mistral.cpp", "models/qwen2.cpp", "trainer/manifest.cpp",
         "trainer/verified_file.cpp"]


def llvm_cov(verb, *arguments):
    command = ["llvm-cov-14", verb, sys.argv[1], f"-instr-profile={sys.argv[2]}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace").stdout


def line_counts():
    """{file: {line: 0 or more}}"""
    counts, current = {}, None
    for line in llvm_cov("show").splitlines():
        if line.startswith("/") and line.endswith(":"):
            current = counts.setdefault(line[:-1], {})
        elif match := re.match(r" +(\d+)\| +([\d.]+[kMGTE]?)\|", line):
            number, reached = int(match[1]), match[2] != "0"
            current[number] = max(current.get(number, False), reached)
    return counts


def functions():
    """{(file, first line, last line): (entered, name)}"""
    found = {}
    for function in json.loads(llvm_cov("export"))["data"][0]["functions"]:
        begin, _, end, *_ = function["regions"][0]
        place = (os.path.normpath(function["filenames"][0]), begin, end)
        entered, _ = found.get(place, (False, ""))
        found[place] = (entered or function["count"] > 0, function["name"])
    return found


def main():
    counts, by_place = line_counts(), functions()
    names = subprocess.run(["c++filt", "-p"], input="\n".join(n for _, n in by_place.values()),
                           capture_output=True, text=True).stdout.split("\n")
    # "file.cpp:_ZN..." of a function without linkage keeps its file.
    names = [re.sub(r".*\.cpp:", "", name) for name in names]
    print("| file | lines reached | of | share | not entered |\n|---|---|---|---|---|")
    reached_in_all = lines_in_all = 0
    for path in sorted(counts):
        name = str(pathlib.Path(path).relative_to(ROOT)) if path.startswith(str(ROOT)) else path
        if name not in FILES and str(pathlib.Path(name).parent) not in FILES or name.endswith(".h"):
            continue
        left_out, skipped = set(), []
        for ((file, begin, end), (entered, _)), shown in zip(by_place.items(), names):
            if file == path and not entered:
                left_out.update(range(begin, end + 1))
                skipped.append(shown.split("::")[-1])
        lines = {n: hit for n, hit in counts[path].items() if n not in left_out}
        reached = sum(lines.values())
        reached_in_all, lines_in_all = reached_in_all + reached, lines_in_all + len(lines)
        print(f"| {name} | {reached} | {len(lines)} | {reached / max(len(lines), 1):.1%} | "
              f"{', '.join(sorted(set(skipped))) or '-'} |")
    print(f"| all | {reached_in_all} | {lines_in_all} | {reached_in_all / lines_in_all:.1%} | |")


if __name__ == "__main__":
    main()
