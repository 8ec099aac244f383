"""Writes templates.json with transformers 5.23.0: published chat templates, and what
apply_chat_template makes of conversations with each of them.

    python make_templates.py PACKAGES QWEN2.gguf

PACKAGES is a folder with these packages of PyPI unpacked: trl 1.16.0, axolotl 0.19.0 and unsloth
2025.3.19 (wheels), llama_cpp_python 0.3.9 (source; its llama.cpp holds published templates). All
are under Apache-2.0 or MIT. Two texts are written down here: llama2's and zephyr's own, as many
public repositories carry them.

rows: one per template: name (ours), source, text, bos, eos, and for each conversation the text
without and with generation prompt (null: the template raises an error).
answers: for texts with {% generation %} marks the marked spans of each conversation: what an
assistant-only loss trains (null as above).
"""
import ast
import json
import pathlib
import re
import sys

import gguf
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

HERE = pathlib.Path(__file__).resolve().parent
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set "
    "system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set "
    "system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] "
    "== 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate "
    "user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message "
    "!= false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + "
    "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if "
    "message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif "
    "message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}")
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + "
    "message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' "
    "+ message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ "
    "'<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and "
    "add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}")
# Of tatsu-lab/stanford_alpaca, train.py: the prompts as a template. An input is a second content.
ALPACA = (
    "{{ bos_token }}{% set turns = messages %}{% if messages[0]['role'] == 'system' %}{% set turns "
    "= messages[1:] %}{{ messages[0]['content'] + '\\n\\n' }}{% elif messages[0]['input'] %}{{ "
    "'Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\\n\\n' }}{% else %}{{ "
    "'Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\\n\\n' }}{% endif %}{% for message in turns %}{% if (message['role'] == 'user') "
    "!= (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% elif message['role'] == 'user' "
    "%}{% if message['input'] %}{{ '### Instruction:\\n' + message['instruction'] + "
    "'\\n\\n### Input:\\n' + message['input'] }}{% else %}{{ '### Instruction:\\n' + "
    "message['content'] }}{% endif %}{% elif message['role'] == 'assistant' %}{{ "
    "'\\n\\n### Response:' + message['content'] + eos_token }}{% if not loop.last %}{{ '\\n\\n' }}"
    "{% endif %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '\\n\\n### Response:' }}"
    "{% endif %}")


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def user(content, **more):
    return message("user", content, **more)


def assistant(content, *calls):
    return message("assistant", content, **({"tool_calls": list(calls)} if calls else {}))


def call(name, arguments, identity):
    return {"id": identity, "type": "function",
            "function": {"name": name, "arguments": arguments}}


def system(content):
    return message("system", content)


def tool(content, identity=None):
    return message("tool", content, **({"tool_call_id": identity} if identity else {}))


def conversations():
    yield [user("What is the capital of France?")]
    yield [user("What is the capital of France?"), assistant("Paris.")]
    yield [system("Answer in one word."), user("Capital of Peru?"), assistant("Lima")]
    yield [system("Answer in one word."), user("Capital of Peru?"), assistant("Lima"),
           user("And of Chile?")]
    yield [user("1 + 1 = ?"), assistant("2"), user("  Indented\n\n  code 42 "), assistant(" ok\n")]
    yield [user("\nleading newline"), assistant('{"a": 1}')]
    yield [system(""), user(""), assistant("\u00e9 \u65e5\u672c \U0001f44d")]
    yield [system(" \t\u3000 "), user(" \n"), assistant("x")]
    yield [user("\u00a0\u2003wide\u2009\u3000"), assistant("\x1c\x85 odd \u2028\u200b")]
    yield [user("say <|im_end|></s>[/INST]<|eot_id|>"), assistant("<end_of_turn> </s>")]
    yield [user("first"), user("second"), assistant("both"), system("late system")]
    yield [assistant("I begin."), user("Why?")]
    yield [system("one"), system("two"), user("q"), assistant("a")]
    yield [system("alone")]
    yield [user("weather?"), assistant("call"), tool('{"t": "21 \u00b0C"}\n'), assistant("21")]
    yield [user("two?"), assistant("calls"), tool("a\tb"), tool('"c"'), assistant("done"),
           user("more")]
    yield [tool("first"), user("q"), assistant("a")]
    arguments = {"city": "Z\u00fcrich \"x\"\n", "days": [1, 2.5, 1e-7, 100000.0, 1e16, -0.0, True, None],
                 "unit": {}, "big": 12345678901}
    first, second = call("weather", arguments, "abcdefgh1"), call("t_2", {}, "abcdefgh2")
    yield [system("s"), user("weather?"), assistant("", first), tool("21 \u00b0C", "abcdefgh1"),
           assistant("21"), user("thanks")]
    yield [user("weather?"), assistant("", first, second), tool("21", "abcdefgh1"),
           tool("22", "abcdefgh2"), assistant("both ")]
    yield [user("weather?"), assistant("Let me see.", first)]
    yield [user("weather?"), assistant("", call("f", {"a": "b"}, "short")), tool("1", "short"),
           assistant("one")]
    yield [user("Add.\n1 2", instruction="Add.", input="1 2"), assistant("3")]


def texts_of_test(packages, name):
    """The template of one case of llama.cpp's test of templates."""
    path = packages / "llama_cpp_python-0.3.9/vendor/llama.cpp/tests/test-chat-template.cpp"
    found = re.search(r'name= \*/ "%s.*?template_str= \*/ ("(?:[^"\\]|\\.)*")' % re.escape(name),
                      path.read_text(), re.S)
    return ast.literal_eval(found.group(1))


def unsloth_vicuna(packages):
    source = (packages / "unsloth/unsloth/chat_templates.py").read_text()
    begin = source.index("vicuna_template = ")
    text = ast.literal_eval("(" + source[begin + 18:source.index("pass", begin)] + ")")
    return text.replace("{system_message}", (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user\\'s questions."))


def published(packages, qwen2):
    trl = packages / "trl-1.16.0-py3-none-any/trl/chat_templates"
    axolotl = packages / "axolotl-0.19.0-py3-none-any/axolotl/utils/chat_templates/templates"
    cpp = packages / "llama_cpp_python-0.3.9/vendor/llama.cpp/models/templates"
    llama3 = "<|begin_of_text|>", "<|eot_id|>"
    spm = "<s>", "</s>"
    own = gguf.GGUFReader(qwen2).fields["tokenizer.chat_template"].contents()
    yield "alpaca", "stanford_alpaca", ALPACA, *spm
    yield "chatml", "axolotl", (axolotl / "chatml.jinja").read_text(), "", "<|im_end|>"
    yield "gemma", "trl", (trl / "gemma.jinja").read_text(), "<bos>", "<eos>"
    yield "gemma", "axolotl", (axolotl / "gemma.jinja").read_text(), "<bos>", "<eos>"
    yield "llama2", "meta-llama/Llama-2-7b-chat-hf", LLAMA2, *spm
    yield "llama3", "trl", (trl / "llama3.jinja").read_text(), *llama3
    yield "llama3", "axolotl", (axolotl / "llama3.jinja").read_text(), *llama3
    yield "llama3.1", "trl", (trl / "llama3_1.jinja").read_text(), *llama3
    yield "llama3.1", "trl, Llama 3.2", (trl / "llama3_2.jinja").read_text(), *llama3
    for source, name, case in (
            ("mistralai/Mistral-7B-Instruct-v0.2, first", "mistral-v0",
             "mistralai/Mistral-7B-Instruct-v0.2 (NOTE"),
            ("mistralai/Mistral-7B-Instruct-v0.2", "mistral-v1",
             "mistralai/Mistral-7B-Instruct-v0.2 (mistralai 'v1'"),
            ("mistralai/Mistral-Large-Instruct-2407", "mistral-v3",
             "Mistral-Large-Instruct-2407")):
        yield name, source, texts_of_test(packages, case), *spm
    yield "mistral-v1", "axolotl", (axolotl / "mistral_v1.jinja").read_text(), *spm
    yield "mistral-v3", "axolotl", (axolotl / "mistral_v2v3.jinja").read_text(), *spm
    yield ("mistral-v3-tekken", "mistralai/Mistral-Nemo-Instruct-2407",
           (cpp / "mistralai-Mistral-Nemo-Instruct-2407.jinja").read_text(), *spm)
    yield "mistral-v3-tekken", "axolotl", (axolotl / "mistral_v3_tekken.jinja").read_text(), *spm
    yield "qwen2", "Qwen/Qwen2", own, "<|endoftext|>", "<|im_end|>"
    yield "qwen2.5", "trl", (trl / "qwen2_5.jinja").read_text(), "", "<|im_end|>"
    yield "vicuna", "unsloth", unsloth_vicuna(packages), *spm
    yield "zephyr", "HuggingFaceH4/zephyr-7b-beta", ZEPHYR, *spm


def tokenizer_of(text, bos, eos):
    tokens = {"<unk>": 0}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(tokens, unk_token="<unk>")),
        **({"bos_token": bos} if bos else {}), eos_token=eos)
    tokenizer.chat_template = text
    return tokenizer


def rendered(tokenizer, messages, prompt):
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt,
                                             date_string="26 Jul 2024")
    except Exception:
        return None


def answers_of(path, bos, eos):
    for messages in conversations():
        try:
            texts, spans = render_jinja_template(
                [messages], chat_template=path.read_text(), return_assistant_tokens_mask=True,
                bos_token=bos, eos_token=eos)
            yield [texts[0][begin:end] for begin, end in spans[0]]
        except Exception:
            yield None


def main():
    packages = pathlib.Path(sys.argv[1])
    rows = []
    for name, source, text, bos, eos in published(packages, sys.argv[2]):
        tokenizer = tokenizer_of(text, bos, eos)
        rows.append({"name": name, "source": source, "text": text, "bos": bos, "eos": eos,
                     "rendered": [[rendered(tokenizer, m, prompt) for prompt in (False, True)]
                                  for m in conversations()]})
    trl = packages / "trl-1.16.0-py3-none-any/trl/chat_templates"
    answers = {name: list(answers_of(trl / file, bos, eos)) for name, file, bos, eos in (
        ("gemma", "gemma_training.jinja", "<bos>", "<eos>"),
        ("llama3", "llama3_training.jinja", "<|begin_of_text|>", "<|eot_id|>"),
        ("qwen2.5", "qwen2_5_training.jinja", "", "<|im_end|>"))}
    document = {"conversations": list(conversations()), "rows": rows, "answers": answers}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (HERE / "templates.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
