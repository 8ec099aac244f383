"""llama.cpp through the package xllamacpp: its server on a free port of this host."""
import json
import unittest
import urllib.request

try:
    import xllamacpp
except ImportError:  # an environment made before it was listed
    xllamacpp = None


class LlamaCpp:
    """A GGUF model, with a LoRA file or none. Close it: the server has threads."""

    def __init__(self, model, lora=None, context=512):
        if xllamacpp is None:
            raise unittest.SkipTest("xllamacpp is not installed: run tests/parity/setup.sh again")
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(model)
        parameters.n_ctx, parameters.n_parallel, parameters.warmup = context, 1, False
        # Its threads wait in a loop: more than there are idle cores make it very slow.
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.verbosity = 1
        if lora is not None:
            parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        self._server = xllamacpp.Server(parameters)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        del self._server

    def _post(self, path, body):
        request = urllib.request.Request(
            self._server.listening_address + path, json.dumps(body).encode(),
            {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)

    def ids(self, text):
        return self._post("/tokenize", {"content": text, "add_special": True,
                                        "parse_special": True})["tokens"]

    def render(self, messages):
        return self._post("/apply-template", {"messages": messages})["prompt"]

    def greedy(self, ids, count):
        return self._post("/completion", {"prompt": ids, "n_predict": count, "temperature": 0,
                                          "cache_prompt": False})["content"]
