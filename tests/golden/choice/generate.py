"""Context and continuation ids of multiple-choice pairs, encoded by lm-evaluation-harness itself.

    python tests/golden/choice/generate.py TOKENIZER.json LM_EVAL.whl
TOKENIZER.json: SmolLM2's, as `shardtune export --to hf` writes it; LM_EVAL.whl: from
`pip download --no-deps lm_eval==0.4.13`. Only TemplateLM._encode_pair is taken from it, as the package
needs far more than this asks for. Made with tokenizers 0.23.3. An empty context gets the prefix token
(bos), as TemplateLM.loglikelihood does.
"""
import ast
import json
import pathlib
import sys
import types
import zipfile

from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file(sys.argv[1])
source = zipfile.ZipFile(sys.argv[2]).read("lm_eval/api/model.py").decode()
function = next(node for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.FunctionDef) and node.name == "_encode_pair")
scope = {}
exec("from __future__ import annotations\n" + ast.unparse(function), scope)
model = types.SimpleNamespace(
    backend="causal", tok_encode=lambda text, **_: tokenizer.encode(text, add_special_tokens=False).ids)

BOS = 1
ROWS = [("The capital of France is", ["Paris", "London", "the river Seine"]),
        ("2 + 2 =", ["4", "22", "-4"]),
        ("Trailing spaces  ", ["word", " word"]),
        ("A line\n", ["x", "\ty"]),
        ("", ["Hello there", "no"]),
        ("caf\u00e9 \U0001f600", ["\u65e5\u672c", "e\u0301"]),
        ("Question: is 15 prime?\nAnswer:", ["yes", "no", "no, 15 = 3 * 5"]),
        ("un", ["believable", "do"])]

result = []
for query, choices in ROWS:
    pairs = []
    for choice in choices:
        continuation = " " + choice  # target_delimiter
        if query == "":
            context_ids = [BOS]
            continuation_ids = model.tok_encode(continuation)
        else:
            context_ids, continuation_ids = scope["_encode_pair"](model, query, continuation)
        pairs.append({"context": context_ids, "continuation": continuation_ids})
    result.append({"query": query, "choices": choices, "pairs": pairs})
out = pathlib.Path(__file__).parent / "pairs.json"
out.write_text("[\n" + ",\n".join(json.dumps(row) for row in result) + "\n]\n")
