"""Writes conversations.json with jinja2 3.1.6, tokenizers 0.23.3 and gguf 0.19.0: conversations,
their text under the model's own template and under plain ChatML, and the ids of that text.

    python make.py MODEL.gguf
"""
import json
import pathlib
import sys

import gguf
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tokenizer"))
from make import from_gguf  # noqa: E402

CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
          "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def conversations():
    def message(role):
        return lambda text: {"role": role, "content": text}

    user, assistant, system = message("user"), message("assistant"), message("system")
    yield [user("What is the capital of France?")]
    yield [user("What is the capital of France?"), assistant("Paris.")]
    yield [system("Answer in one word."), user("Capital of Peru?"), assistant("Lima"),
           user("And of Chile?")]
    yield [user("1 + 1 = ?"), assistant("2"), user("  Indented\n\n  code 42 "), assistant(" ok\n")]
    yield [user("\nleading newline"), assistant("{\"a\": 1}")]
    yield [system(""), user(""), assistant("é 日本 👍")]
    yield [user("first"), user("second"), assistant("both"), system("late system")]


def main():
    tokenizer = from_gguf(sys.argv[1])
    own = gguf.GGUFReader(sys.argv[1]).fields["tokenizer.chat_template"].contents()
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    rows = []
    for messages in conversations():
        row = {"messages": messages}
        for name, text in (("smollm2", own), ("chatml", CHATML)):
            template = environment.from_string(text)
            for suffix, prompt in (("", False), ("_prompt", True)):
                rendered = template.render(messages=messages, add_generation_prompt=prompt)
                row[name + suffix] = rendered
                row[name + suffix + "_ids"] = tokenizer.encode(rendered).ids
        rows.append(row)
    document = {"templates": {"smollm2": own, "chatml": CHATML}, "conversations": rows}
    (HERE / "conversations.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
