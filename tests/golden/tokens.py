"""CLIP's tokenizer as Hugging Face folders hold it, written from the merges that open_clip carries."""

import gzip
import json
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
MERGES = 49152 - 256 - 2


def write(folder: Path, merges: Path) -> None:
    """vocab.json, merges.txt and the two configs, from open_clip's bpe_simple_vocab_16e6.txt.gz."""
    lines = gzip.decompress(merges.read_bytes()).decode().split("\n")[1 : MERGES + 1]
    signs = [*range(33, 127), *range(161, 173), *range(174, 256)]
    signs = [chr(n) for n in signs] + [chr(256 + n) for n in range(256 - len(signs))]
    words = [
        *signs,
        *(sign + "</w>" for sign in signs),
        *("".join(line.split()) for line in lines),
        START,
        END,
    ]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]))
    settings = {**SPECIAL, "model_max_length": 77, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL))
