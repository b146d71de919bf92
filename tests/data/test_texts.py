from __future__ import annotations

from neurofleet.data.texts import build_vocabulary, tokenise


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
