"""Seeds of JSON and YAML for make_seeds.py: nesting, aliases, numbers, encodings, keys."""
from seed_files import write


# JSON --------------------------------------------------------------------------------------------
def make_json():
    def seed(name, content):
        write("json", name, content)

    seed("valid", '{"a": [1, -2.5e3, true, null, "\\u00e9\\ud83d\\ude00"], "b": {}}')
    seed("empty", "")
    seed("arrays_nested_20000", "[" * 20000)
    seed("objects_nested_5000", '{"a":' * 5000)
    seed("arrays_nested_64", "[" * 64 + "]" * 64)
    seed("arrays_nested_65", "[" * 65 + "]" * 65)
    seed("mixed_nesting_closed", '[{"a":' * 500 + "1" + "}]" * 500)
    seed("number_1e400", "[1e400]")
    seed("number_2_to_the_64", "[18446744073709551616, 9223372036854775808, -9223372036854775809]")
    seed("number_of_5000_digits", "[" + "9" * 5000 + "]")
    seed("exponent_of_5000_digits", "[1e" + "9" * 5000 + "]")
    seed("number_with_a_zero_before", "[010]")
    seed("number_minus", "[-]")
    seed("not_a_number", "[NaN, Infinity]")
    seed("key_twice", '{"a": 1, "b": 2, "a": 3}')
    seed("key_twice_by_escape", '{"a": 1, "\\u0061": 3}')
    seed("half_a_surrogate_pair", '["\\ud800"]')
    seed("surrogates_backwards", '["\\ude00\\ud83d"]')
    seed("not_utf8", b'["\xff\xfe\x80"]')
    seed("overlong_utf8", b'["\xc0\xaf"]')
    seed("utf8_cut", b'["\xe2\x82')
    seed("zero_byte", b'["a\x00b"]')
    seed("escape_zero", '["a\\u0000b"]')
    seed("string_not_closed", '["abc')
    seed("escape_unknown", '["\\x41"]')
    seed("comma_at_the_end", "[1, 2,]")
    seed("text_behind", "{} {}")
    seed("byte_order_mark", b"\xef\xbb\xbf{}")
    seed("comment", "{} // no")
    seed("keys_3000", "{" + ",".join(f'"{i}":0' for i in range(3000)) + "}")
    for name, content in {
        "only_space": " \t\r\n ", "bracket_alone": "[", "brace_alone": "{", "bracket_closed_alone": "]",
        "brackets_crossed": "[{]}", "key_without_quotes": "{a: 1}", "key_of_a_number": '{1: 2}',
        "single_quotes": "{'a': 1}", "colon_missing": '{"a" 1}', "value_missing": '{"a": }',
        "comma_missing": '{"a": 1 "b": 2}', "comma_first": "[,1]", "commas_two": "[1,,2]",
        "line_end_in_a_string": '["a\nb"]', "control_in_a_string": '["a\x01b"]',
        "capital_true": "[True]", "word_cut": "[tru", "plus_number": "[+1]", "dot_first": "[.5]",
        "dot_last": "[1.]", "exponent_empty": "[1e]", "hexadecimal": "[0x1F]", "underscore": "[1_000]",
        "infinity": "[Infinity]", "number_tiny": "[1e-400, -0.0, 5e-324]", "key_empty": '{"": 1}',
        "keys_empty_twice": '{"": 1, "": 2}', "unicode_cut": '["\\u00"]', "unicode_no_hex": '["\\u00zz"]',
        "surrogate_then_text": '["\\ud83dx"]', "not_a_character": '["\\uffff\\ufdd0"]',
        "string_of_16000": '["' + "x" * 16000 + '"]', "key_of_16000": '{"' + "k" * 16000 + '": 1}',
        "key_twice_of_20": "{" + ",".join(f'"{i % 19}":0' for i in range(20)) + "}",
        "empties_20000": "[" + "[],{}," * 10000 + "0]", "spaces_40000": " " * 40000 + "1" + " " * 40000,
        "comment_hash": "# no\n{}", "comment_block": "/* no */ {}", "lines_of_json": "{}\n{}\n",
    }.items():
        seed(name, content)
    for name, content in {
        "utf8_surrogate": b'["\xed\xa0\x80"]', "utf8_over_10ffff": b'["\xf4\x90\x80\x80"]',
        "utf8_five_bytes": b'["\xf8\x88\x80\x80\x80"]', "utf8_alone_80": b'["\x80"]',
        "utf8_overlong_nul": b'["\xc0\x80"]', "utf16": '{"a": 1}'.encode("utf-16"),
        "utf8_in_a_key": b'{"\xff": 1}', "gzip": b"\x1f\x8b\x08\x00" + bytes(16),
    }.items():
        seed(name, content)
    for name, content in {
        "arrays_nested_64_deep_in_objects": '{"a":' * 32 + "[" * 32 + "]" * 32 + "}" * 32,
        "objects_nested_65": '{"a":' * 65 + "1" + "}" * 65, "objects_nested_5000_closed": '{"a":' * 5000 + "1" + "}" * 5000,
        "arrays_nested_20000_closed": "[" * 20000 + "]" * 20000, "brackets_in_a_text_5000": '["' + "[" * 5000 + '"]',
        "brackets_closed_5000": "]" * 5000, "nested_behind_values": "[" + "[1]," * 5000 + "[" * 70,
        "number_1e308": "[1e308, -1.7976931348623157e308, 5e-324]", "number_1e309": "[1e309]",
        "number_minus_1e400": "[-1e400]", "number_2_to_the_63": "[9223372036854775807, -9223372036854775808]",
        "number_of_5000_decimals": "[0." + "1" * 5000 + "]", "number_of_zeros": "[0." + "0" * 5000 + "e5000]",
        "number_exponent_signs": "[1e+-5]", "number_minus_zero_before": "[-01]", "number_with_a_letter": "[12a]",
        "key_twice_deep": '[[{"a": {"b": 1, "b": 2}}]]', "key_twice_far": '{"a": 0,' + ",".join(
            f'"k{i}": 0' for i in range(2000)) + ', "a": 1}',
        "key_twice_in_two_forms": '{"caf\\u00e9": 1, "caf\u00e9": 2}', "key_twice_composed": '{"\u00e9": 1, "e\u0301": 2}',
        "escapes_4000": '["' + "\\u0041" * 4000 + '"]', "escape_cut": '["\\', "backslashes_5000": '["' + "\\\\" * 5000 + '"]',
        "commas_20000": "[" + "," * 20000 + "]", "colons_two": '{"a":: 1}', "text_before": "x {}",
    }.items():
        seed(name, content)


# YAML --------------------------------------------------------------------------------------------
def make_yaml():
    def seed(name, content):
        write("yaml", name, content)

    seed("valid", "model: {model_name_or_path: m}\ntraining:\n  max_steps: 3\n  betas: [0.9, 0.999]\n")
    seed("empty", "")
    seed("flow_nested_10000", "a: " + "[" * 10000)
    seed("flow_maps_nested_10000", "a: " + "{a: " * 10000)
    seed("flow_nested_100_closed", "a: " + "[" * 100 + "]" * 100)
    seed("blocks_nested_200", "".join(" " * i + "a:\n" for i in range(200)))
    seed("sequences_nested_5000", "- " * 5000 + "a")
    seed("questions_nested_5000", "? " * 5000 + "a")
    seed("aliases_fan_out", "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [" + ",".join([f"*{chr(97 + i)}"] * 9) + "]\n" for i in range(9)))
    seed("alias_of_itself", "a: &a [*a]")
    seed("alias_in_8_bytes", "&a [*a]\n")
    seed("alias_unknown", "a: *b")
    seed("merge_key", "a: &a {x: 1}\nb:\n  <<: *a\n  y: 2\n")
    seed("key_twice", "a: 1\nb: 2\na: 3\n")
    seed("key_without_a_colon", "a: 1\n" + "k" * 2000 + "\n")
    seed("key_a_map", "{a: 1}: 2\n")
    seed("key_a_sequence", "? [a, b]\n: 1\n")
    seed("tag_binary", "a: !!binary aGVsbG8=\n")
    seed("tag_of_python", "a: !!python/object/apply:os.system [ls]\n")
    seed("two_documents", "a: 1\n---\nb: 2\n")
    seed("tabs", "a:\n\tb: 1\n")
    seed("zero_byte", b"a: x\x00y\n")
    seed("not_utf8", b"a: \xff\xfe\n")
    seed("quote_not_closed", "a: 'x\nb: 2\n")
    seed("nodes_20000", "a: [" + "1," * 20000 + "]\n")
    seed("number_010", "a: 010\nb: 1_000\nc: 0x1F\nd: 1e999\n")
    seed("scalar_alone", "hello\n")
    seed("line_end_in_quotes", '"\\N4YAML"\n')
    seed("colon_before_a_return", "a: value::\r")
    seed("sequence_alone", "- a\n- b\n")
    seed("block_scalar", "a: |\n  x\n  y\nb: >-\n  z\n")
    for depth in (63, 64, 65, 1000):
        seed(f"flow_depth_{depth}", "a: " + "[" * depth + "]" * depth + "\n")
        seed(f"block_depth_{depth}", "".join(" " * i + "- \n" for i in range(min(depth, 180))))
        seed(f"maps_depth_{depth}", "a: " + "{a: " * depth + "1" + "}" * depth + "\n")
    for width in (2, 3, 10, 100):  # levels of aliases that name the level before so often
        seed(f"aliases_fan_out_{width}", "a0: &a0 x\n" + "".join(
            f"a{i}: &a{i} [" + ",".join([f"*a{i - 1}"] * width) + "]\n" for i in range(1, 30)))
    for name, content in {
        "alias_as_a_key": "a: &a x\n*a : 1\n", "alias_behind_a_tag": "a: !!seq *b\n",
        "anchor_twice": "a: &x 1\nb: &x 2\nc: *x\n", "anchor_without_a_name": "a: & 1\n",
        "anchor_on_a_map": "&m {a: 1}\n", "cycle_of_two": "a: &a [*b]\nb: &b [*a]\n",
        "merge_key_of_a_list": "a: &a {x: 1}\nb: {<<: [*a, *a]}\n", "merge_key_alone": "<<: {a: 1}\n",
        "merge_key_quoted": '"<<": {a: 1}\n', "tag_own": "a: !mine 1\n", "tag_null": "a: !!null x\n",
        "tag_directive": "%TAG ! tag:x,2000:\n---\na: !y 1\n", "version_directive": "%YAML 1.1\n---\na: 1\n",
        "directive_unknown": "%FOO bar\n---\na: 1\n", "document_end": "a: 1\n...\n",
        "document_end_then_text": "a: 1\n...\nb: 2\n", "documents_3000": "---\n" * 3000,
        "key_empty": ": 1\n", "key_null": "~: 1\n", "key_twice_quoted": "a: 1\n'a': 2\n",
        "key_twice_in_flow": "a: {b: 1, b: 2}\n", "key_of_257": "k" * 257 + ": 1\n", "key_of_256": "k" * 256 + ": 1\n",
        "indent_back": "a:\n    b: 1\n  c: 2\n", "indent_of_list": "a:\n- 1\n  - 2\n",
        "colon_without_space": "a:1\n", "colons_two": "a: b: c\n", "flow_not_closed": "a: {b: [1, 2}\n",
        "flow_comma_first": "a: [, 1]\n", "flow_colon": "a: [b: 1]\n", "brace_closed_alone": "a: }\n",
        "at_sign": "a: @b\n", "backquote": "a: `b`\n", "percent": "a: %b\n", "question_alone": "?\n",
        "dash_without_space": "a:\n  -1\n  -2\n", "escape_unknown": 'a: "\\q"\n', "escape_cut": 'a: "\\x4"\n',
        "escape_surrogate": 'a: "\\uD800"\n', "escape_over_10ffff": 'a: "\\U00110000"\n',
        "block_indicator_bad": "a: |99\n  x\n", "block_not_indented": "a: |\nx\n", "word_yes": "a: yes\nb: On\n",
        "numbers_odd": "a: .inf\nb: -.INF\nc: .nan\nd: 0o17\ne: 1:30\n", "line_of_16000": "a: " + "x" * 16000 + "\n",
        "comment_of_16000": "#" + "c" * 16000 + "\na: 1\n", "lines_empty_20000": "\n" * 20000 + "a: 1\n",
        "carriage_returns": "a: 1\rb: 2\r", "line_separator": "a: 1\u2028b: 2\n", "no_break_space": "a:\u00a01\n",
        "keys_5000": "".join(f"k{i}: 0\n" for i in range(5000)),
    }.items():
        seed(name, content)
    for name, content in {
        "byte_order_mark": b"\xef\xbb\xbfa: 1\n", "byte_order_mark_inside": b"a: 1\n\xef\xbb\xbfb: 2\n",
        "utf16": "a: 1\n".encode("utf-16"), "utf8_surrogate": b"a: \xed\xa0\x80\n",
        "utf8_overlong": b"a: \xc0\xaf\n", "utf8_cut": b"a: \xe2\x82", "escape_character": b"a: \x1b[31m\n",
        "delete_character": b"a: \x7f\n", "next_line": b"a: 1\xc2\x85b: 2\n",
    }.items():
        seed(name, content)

    make_more_yaml(seed)
    make_yaml_aliases(seed)
    make_yaml_bytes(seed)


def make_more_yaml(seed):
    for depth in (100, 513, 2000):  # above the 64 levels and the 512 open brackets that are read
        for name, begin, end in (("mixed", "[{a: ", "}]"), ("maps_without_values", "{", "}"),
                                 ("keys", "{? ", "}"), ("in_quotes", '["a", ', "]"),
                                 ("in_anchors", "&a [", "]")):
            seed(f"nested_{name}_{depth}", "a: " + begin * depth + "1" + end * depth + "\n")
            if depth > 100:
                seed(f"nested_{name}_{depth}_open", "a: " + begin * depth)
    for depth in (65, 200):
        seed(f"blocks_of_lists_{depth}", "".join("  " * i + "- a:\n" for i in range(depth)))
        seed(f"compact_lists_{depth}", "- " * depth + "a: 1\n")
        seed(f"compact_keys_{depth}", "? " * depth + "a\n")
        seed(f"block_keys_{depth}", "".join("  " * i + "?\n" for i in range(depth)) + "  " * depth + "a: 1\n")
    for name, content in {
        "brackets_in_quotes_5000": 'a: "' + "[" * 5000 + '"\n', "brackets_in_a_comment_5000": "a: 1 #" + "[" * 5000 + "\n",
        "brackets_in_a_block_5000": "a: |\n  " + "[" * 5000 + "\n", "brackets_in_a_plain_text": "a: x[[[[]]]]\n",
        "brackets_closed_5000": "a: " + "]" * 5000 + "\n", "brackets_crossed": "a: [{]}\n",
        "commas_100001": "a: [" + "," * 100001 + "]\n", "lists_of_lists_wide": "a: [" + "[1,2,3]," * 3000 + "]\n",
        "empty_maps_5000": "a: [" + "{}," * 5000 + "]\n", "dashes_10000": "a:\n" + "- 1\n" * 10000,
        "text_of_many_lines": "a: " + "word\n  " * 3000 + "\n", "block_of_many_lines": "a: |\n" + "  x\n" * 5000,
        "folded_of_empty_lines": "a: >\n" + "\n" * 5000 + "  x\n", "escapes_4000": 'a: "' + "\\u0041" * 4000 + '"\n',
        "quotes_doubled_5000": "a: '" + "''" * 5000 + "'\n", "backslashes_5000": 'a: "' + "\\\\" * 5000 + '"\n',
        "line_ends_escaped": 'a: "' + "x\\\n  " * 2000 + '"\n', "quote_of_16000_not_closed": 'a: "' + "x" * 16000,
        "key_of_256_in_quotes": '"' + "k" * 256 + '": 1\n', "key_of_257_in_quotes": '"' + "k" * 257 + '": 1\n',
        "key_of_100_wide": "\u4e2d" * 100 + ": 1\n", "key_of_16000": "k" * 16000 + ": 1\n",
        "key_of_spaces": '"   ": 1\n', "key_of_two_lines": '"a\n  b": 1\n', "key_block": "? |\n  a\n: 1\n",
        "key_twice_by_escape": 'a: 1\n"\\x61": 2\n', "key_twice_deep": "a: {b: {c: 1, c: 2}}\n",
        "key_twice_with_a_tag": "a: 1\n!!str a: 2\n", "key_twice_of_300": "".join(f"k{i % 299}: 0\n" for i in range(300)),
        "key_null_twice": "null: 1\n~: 2\n", "key_a_number": "1: a\n", "key_a_list_in_flow": "{[a]: 1}\n",
        "key_with_a_dot": "a.b: 1\n", "key_with_a_colon": '"a:b": 1\n', "key_without_a_value": "a:\nb:\n",
        "tag_float": "a: !!float x\n", "tag_int": "a: !!int 1.5\n", "tag_map_on_a_list": "a: !!map [1]\n",
        "tag_set": "a: !!set {b, c}\n", "tag_omap": "a: !!omap [b: 1]\n", "tag_timestamp": "a: !!timestamp 2001-01-01\n",
        "tag_verbatim": "a: !<tag:yaml.org,2002:str> b\n", "tag_verbatim_open": "a: !<tag b\n",
        "tag_of_ruby": "a: !ruby/object:Gem::Installer {}\n", "tag_of_javascript": 'a: !!js/function "x"\n',
        "tag_of_python_name": "a: !!python/name:os.system\n", "tag_of_5000": "a: !" + "t" * 5000 + " b\n",
        "tag_alone": "!\n", "tag_twice": "a: !!str !!int 1\n", "tag_on_a_key": "!!str a: 1\n",
        "directive_version_9": "%YAML 9.9\n---\na: 1\n", "directive_version_twice": "%YAML 1.2\n%YAML 1.2\n---\na: 1\n",
        "directive_cut": "%YAML", "directive_tag_twice": "%TAG !a! x\n%TAG !a! y\n---\na: 1\n",
        "documents_empty": "---\n---\n", "document_marks_alone": "---\n...\n", "document_mark_inside": "a: |\n--- x\n",
        "tab_behind_a_key": "a:\t1\n", "tab_in_flow": "a: [\t1,\t2]\n", "tab_before_a_comment": "a: 1\t# c\n",
        "tab_after_spaces": "a:\n  \tb: 1\n", "indent_of_1000": "a:\n" + " " * 1000 + "b: 1\n",
        "indent_less_in_flow": "a: [1,\n2]\n", "indent_of_block_9": "a: |9\n  x\n", "indent_of_block_0": "a: |0\n x\n",
        "list_beside_keys": "a: 1\n- b\n", "key_beside_a_list": "- b\na: 1\n", "value_on_two_levels": "a: 1\n  b: 2\n",
        "numbers_of_range": "a: 9223372036854775808\nb: -9223372036854775809\nc: 1e-400\nd: 0x" + "f" * 40 + "\n",
        "numbers_long": "a: " + "9" * 4000 + "\nb: 0." + "0" * 4000 + "1\n", "numbers_of_units": "a: 5G\nb: 1_0\nc: 1e\nd: +\n",
        "numbers_of_python": "a: 0o7\nb: 0b1\nc: 1j\nd: 1:2:3\ne: 1.\nf: .\n",
    }.items():
        seed(name, content)


def make_yaml_aliases(seed):
    for name, content in {
        "alias_in_a_list": "a: &a 1\nb: [1, *a]\n", "alias_in_a_map": "a: &a 1\nb: {c: *a}\n",
        "alias_before_its_anchor": "a: *b\nb: &b 1\n", "alias_of_the_document": "&a\na: *a\n",
        "alias_of_a_key": "&k a: 1\nb: *k\n", "alias_as_a_flow_key": "{&a a: 1, *a : 2}\n",
        "alias_deep": "a: &a x\nb: " + "[" * 60 + "*a" + "]" * 60 + "\n", "alias_without_a_name": "a: *\n",
        "alias_with_an_anchor": "a: &a 1\nb: &b *a\n", "aliases_2000": "a: &a 1\nb: [" + "*a," * 2000 + "]\n",
        "aliases_of_a_long_text": "a: &a " + "x" * 10000 + "\nb: [" + "*a," * 100 + "]\n",
        "anchors_500": "".join(f"k{i}: &a{i} 0\n" for i in range(500)), "anchor_of_5000": "a: &" + "n" * 5000 + " 1\n",
        "anchor_without_a_value": "a: &x\nb: 1\n", "anchor_twice_on_one": "a: &x &y 1\n",
        "anchor_of_brackets": "a: &[] 1\n", "cycle_through_a_key": "a: &a {? *a : 1}\n",
        "cycle_through_a_merge": "a: &a {<<: *a}\n", "cycle_of_three": "a: &a [*b]\nb: &b [*c]\nc: &c [*a]\n",
        "merge_keys_of_merge_keys": "a: &a {x: 1}\nb: &b {<<: *a}\nc: {<<: *b}\n",
        "merge_key_of_a_number": "a: {<<: 1}\n", "merge_key_twice": "a: {<<: {b: 1}, <<: {c: 1}}\n",
        "merge_key_with_a_tag": "a: {!!merge <<: {b: 1}}\n",
    }.items():
        seed(name, content)


def make_yaml_bytes(seed):
    for name, content in {
        "utf16_big_end": b"\xfe\xff\0a\0:\0 \x001\0\n", "utf32": "a: 1\n".encode("utf-32"), "latin_1": b"a: caf\xe9\n",
        "utf8_five_bytes": b"a: \xf8\x88\x80\x80\x80\n", "utf8_over_10ffff": b"a: \xf4\x90\x80\x80\n",
        "utf8_alone_80": b"\x80: 1\n", "utf8_bad_in_a_key": b"a\xff: 1\n", "utf8_bad_in_a_comment": b"a: 1 # \xff\n",
        "byte_order_mark_twice": b"\xef\xbb\xbf\xef\xbb\xbfa: 1\n", "zero_byte_first": b"\x00a: 1\n",
        "zero_byte_last": b"a: 1\n\x00", "bell_in_a_key": b"a\x07: 1\n", "control_c1": b"a: \xc2\x80x\n",
        "not_a_character": "a: \uffff\n".encode(), "right_to_left": "a: \u202ex\n".encode(),
        "backspaces_in_a_key": b"ab\x08\x08c: 1\n", "gzip": b"\x1f\x8b\x08\x00" + bytes(16), "png": b"\x89PNG\r\n\x1a\n",
        "elf": b"\x7fELF\x02\x01\x01\x00",
    }.items():
        seed(name, content)
