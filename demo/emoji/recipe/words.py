"""The tokenizer: one id per word of the captions, unknown words dropped, twelve ids a prompt."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .data import LONGEST, words

LENGTH = LONGEST + 3  # a style word, <bos> and <eos>
SPECIAL = ["<unused>", "<bos>", "<eos>"]


def vocabulary(captions: Iterable[str]) -> list[str]:
    """All words of the captions, sorted."""
    return sorted({word for caption in captions for word in words(caption)})


def tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    """Word → id, framed by `<bos>` and `<eos>`, padded with `<eos>`.

    Words carry the mark ▁ and there are no merges: a word outside the vocabulary falls apart into
    characters that have no id, and a BPE without an unknown token drops those.
    """
    ids = {token: i for i, token in enumerate(SPECIAL + [f"▁{word}" for word in vocabulary])}
    inner = Tokenizer(models.BPE(vocab=ids, merges=[], ignore_merges=True))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex("[^a-z0-9]+"), " "), normalizers.Strip()]
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.post_processor = processors.TemplateProcessing(
        "<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<eos>",
        model_max_length=LENGTH,
        clean_up_tokenization_spaces=False,
    )
