"""Writes tests/reference/minilm: sentence embeddings of a checkpoint, as PyTorch computes them.

    python tools/dump_embeddings.py CHECKPOINT_FOLDER OUT_FOLDER

CHECKPOINT_FOLDER is what tools/fetch_minilm.sh prints. Needs torch, transformers, safetensors (versions are recorded in the output).
Each sentence is run alone, without padding, in float32, with transformers' own attention; then what the checkpoint's modules.json
asks for: the mean over tokens, divided by its length. Tokens past `max_seq_length` of sentence_bert_config.json are dropped.
"""

import hashlib
import json
import sys
from pathlib import Path

try:
    import safetensors.torch
    import tokenizers
    import torch
    import transformers
except ImportError as error:
    sys.exit(f"{error}: pip install torch transformers safetensors tokenizers")

SENTENCES = [
    "A man is eating food.",
    "Someone is having a meal.",
    "The girl is carrying a baby.",
    "What is the capital of France?",
    "Paris has been the seat of the French government for centuries.",
    "def add(a, b):\n    return a + b  # the sum of two numbers",
    "Élégant café – naïve façade, 東京 and 🙂!",
    "no",
    " ".join(
        f"Paragraph {n}: the committee met on the {n}th of the month, approved the minutes, heard the treasurer, and adjourned."
        for n in range(4, 11)
    ),
]


def main(checkpoint: Path, out: Path) -> None:
    modules = [m["type"].rsplit(".", 1)[-1] for m in json.loads((checkpoint / "modules.json").read_text())]
    pooling = json.loads((checkpoint / "1_Pooling/config.json").read_text())
    if modules != ["Transformer", "Pooling", "Normalize"] or not pooling["pooling_mode_mean_tokens"]:
        sys.exit(f"{checkpoint}: not mean pooling followed by normalisation")
    limit = json.loads((checkpoint / "sentence_bert_config.json").read_text())["max_seq_length"]

    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    model = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()

    sentences, embeddings = [], []
    for text in SENTENCES:
        ids = tokenizer.encode(text).ids
        with torch.inference_mode():
            hidden = model(torch.tensor([ids])).last_hidden_state[0]
        embeddings.append(torch.nn.functional.normalize(hidden.mean(0), dim=0))
        sentences.append({"text": text, "ids": ids})

    out.mkdir(parents=True, exist_ok=True)
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    about = {
        "model.safetensors": weights,
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, tokenizers)},
        "sentences": sentences,
    }
    (out / "sentences.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    safetensors.torch.save_file({"embeddings": torch.stack(embeddings)}, out / "embeddings.safetensors")
    print(torch.stack(embeddings) @ torch.stack(embeddings).T)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
