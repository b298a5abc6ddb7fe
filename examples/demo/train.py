#!/usr/bin/env python3
"""Trains the demo's models: small decoders that complete Python.

    pip install torch transformers tokenizers
    python examples/demo/train.py OUT [--architecture dense|windowed] [--steps 2000] [--threads 2]

The text is the source of Python's own standard library, as installed beside the interpreter that runs this. OUT becomes a checkpoint
folder as Hugging Face transformers writes it: config.json, model.safetensors (bfloat16), tokenizer.json. One file in fifty is held out;
its loss is printed. 2000 steps take about 45 minutes on one core.
"""

import argparse
import json
import math
import random
import sys
import sysconfig
import time
from pathlib import Path

import numpy
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 4096
END = "<|end|>"  # stands between files
CONTEXT = 256  # tokens a training sequence
BATCH = 16

# Not code that one would want completed: generated tables, and tests.
SKIPPED = {"site-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "turtledemo", "__pycache__"}

SHARED = dict(
    vocab_size=VOCABULARY,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=0,
)
ARCHITECTURES = {
    # Norms before the sublayers, every layer sees everything.
    "dense": ("llama", dict(SHARED, head_dim=64)),
    # Norms after the sublayers and on queries and keys; three layers see 64 tokens back, the fourth everything.
    "windowed": ("olmo3", dict(SHARED, sliding_window=64, layer_types=["sliding_attention"] * 3 + ["full_attention"])),
}


def read_standard_library():
    """The sources, in a shuffled order that is always the same."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(p for p in root.rglob("*.py") if not SKIPPED & set(p.relative_to(root).parts))
    texts = [p.read_text(encoding="utf-8", errors="ignore") for p in files]
    random.Random(0).shuffle(texts)
    print(f"{len(texts)} files, {sum(map(len, texts)) / 1e6:.1f} MB", flush=True)
    return texts


def train_tokenizer(texts):
    """Byte-level BPE: every text can be encoded, and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    return tokenizer


def encode(tokenizer, texts):
    end = tokenizer.token_to_id(END)
    return torch.from_numpy(numpy.concatenate([numpy.array(e.ids + [end], dtype=numpy.int64) for e in tokenizer.encode_batch(texts)]))


def optimizers(model):
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers." in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def schedule(step, steps):
    """Share of the full learning rate: 50 steps up, then a cosine down to a fiftieth."""
    if step < 50:
        return (step + 1) / 50
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))


def batches(ids, rng):
    while True:
        starts = rng.integers(0, len(ids) - CONTEXT, BATCH)
        yield torch.stack([ids[s : s + CONTEXT] for s in starts])


def held_out_loss(model, ids):
    model.eval()
    rows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:64]
    with torch.no_grad():
        loss = sum(model(input_ids=r, labels=r).loss.item() * len(r) for r in rows.split(BATCH)) / len(rows)
    model.train()
    return loss


def train(model, training, held_out, steps):
    rng = numpy.random.default_rng(0)
    opts = optimizers(model)
    full = [[g["lr"] for g in o.param_groups] for o in opts]
    recent, began = [], time.time()
    for step, rows in zip(range(steps), batches(training, rng)):
        for opt, rates in zip(opts, full):
            for group, rate in zip(opt.param_groups, rates):
                group["lr"] = rate * schedule(step, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1:5} of {steps}: loss {sum(recent) / len(recent):.3f}, {time.time() - began:.0f} s", flush=True)
            recent.clear()
    print(f"held-out loss {held_out_loss(model, held_out):.3f} a token", flush=True)


def sample(model, tokenizer):
    # No prompt ends in a line break: the tokens of an indented line begin with it.
    model.float().eval()
    for prompt in ("def read_file(path):", "import os\nimport sys\n\ndef main(args", "def add(self, item):", "    for key, value in"):
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=True, temperature=0.6, top_k=40)
        print("-----\n" + tokenizer.decode(out[0].tolist()), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="dense")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        sys.exit(f"{args.out} exists and is not empty")
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)

    texts = read_standard_library()
    tokenizer = train_tokenizer(texts)
    training, held_out = encode(tokenizer, texts[len(texts) // 50 :]), encode(tokenizer, texts[: len(texts) // 50])
    print(f"{len(training) / 1e6:.2f} million tokens to train on, {len(held_out) / 1e3:.0f} thousand held out", flush=True)

    kind, sizes = ARCHITECTURES[args.architecture]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    print(f"{kind}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters", flush=True)
    train(model, training, held_out, args.steps)

    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save(str(args.out / "tokenizer.json"))
    (args.out / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}, indent=2) + "\n")
    sample(model, tokenizer)


if __name__ == "__main__":
    main()
