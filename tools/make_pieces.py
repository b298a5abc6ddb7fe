#!/usr/bin/env python3
"""Writes tests/reference/gguf/pieces.json: a small vocabulary of pieces with scores, and texts as its own implementation cuts them.

    python3 tools/make_pieces.py OUT_FILE

The vocabulary is made from this repository's documentation. Needs sentencepiece.
"""

import json
import sys
import tempfile
from pathlib import Path

try:
    import sentencepiece
except ImportError as error:
    sys.exit(f"{error}: pip install sentencepiece")

TEXTS = [
    "Hello world",
    "the model  reads two  spaces",
    "  leading",
    "A token, a byte: é 漢 🦀!\nline\ttab",
    "1234 numbers and symbols += {} [] ()",
    "",
    "every embedding is a table of weights",
    "checkpoint",
]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    pages = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
    lines = [line for page in pages for line in page.read_text().splitlines() if line.strip()]
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text"
        text.write_text("\n".join(lines)[:120_000])
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=f"{folder}/pieces", vocab_size=700, model_type="bpe", byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.999, split_digits=True)
        pieces = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/pieces.model")

    def kind(i):
        return 2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 6 if pieces.is_byte(i) else 1

    ids = range(pieces.vocab_size())
    made = {
        "tokens": [pieces.id_to_piece(i) for i in ids],
        "scores": [round(pieces.get_score(i), 6) for i in ids],
        "types": [kind(i) for i in ids],
        "texts": [{"text": text, "ids": pieces.encode(text)} for text in TEXTS],
    }
    Path(sys.argv[1]).write_text(json.dumps(made, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
