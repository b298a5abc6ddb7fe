#!/usr/bin/env python3
"""Writes tests/reference/gguf/files.json: what a GGUF file made of each reference case holds.

    python3 tools/make_gguf_files.py tests/reference/cases OUT_FILE

Tensors are called what the format's own Python package calls them, and metadata has its keys. What a converter does to tensors besides (the
order of rotary pairs, the 1 that is added to norms, transposed and stacked matrices, factors of frequencies) is written out here after
the description of the conversion of each family. Values are not written: a test fills the tensors. Needs gguf.
"""

import json
import math
import sys
from pathlib import Path

try:
    import gguf
    from gguf import Keys, MODEL_ARCH, MODEL_ARCH_NAMES
except ImportError as error:
    sys.exit(f"{error}: pip install gguf")

# Case, architecture of the file.
CASES = {
    "gpt2": MODEL_ARCH.GPT2, "llama2": MODEL_ARCH.LLAMA, "llama3": MODEL_ARCH.LLAMA, "llama3_2_tied": MODEL_ARCH.LLAMA,
    "mixtral": MODEL_ARCH.LLAMA, "phi3": MODEL_ARCH.PHI3, "phi3_longrope": MODEL_ARCH.PHI3, "qwen2": MODEL_ARCH.QWEN2, "qwen3": MODEL_ARCH.QWEN3,
    "qwen3_moe": MODEL_ARCH.QWEN3MOE, "gemma2": MODEL_ARCH.GEMMA2, "gemma3": MODEL_ARCH.GEMMA3,
}


def metadata(config, arch, heads):
    """What is said of the sizes."""
    name = MODEL_ARCH_NAMES[arch]
    said = {Keys.General.ARCHITECTURE: name}

    def add(key, *names, default=None):
        value = next((config[n] for n in names if config.get(n) is not None), default)
        if value is not None:
            said[key.format(arch=name)] = value

    rope = config.get("rope_parameters") or {}
    full = rope.get("full_attention", rope)
    add(Keys.LLM.CONTEXT_LENGTH, "max_position_embeddings", "n_positions")
    add(Keys.LLM.EMBEDDING_LENGTH, "hidden_size", "n_embd")
    add(Keys.LLM.BLOCK_COUNT, "num_hidden_layers", "n_layer")
    add(Keys.LLM.FEED_FORWARD_LENGTH, "intermediate_size", "n_inner", default=4 * config.get("n_embd", 0) or None)
    add(Keys.Attention.HEAD_COUNT, "num_attention_heads", "n_head")
    add(Keys.Attention.HEAD_COUNT_KV, "num_key_value_heads")
    add(Keys.Attention.LAYERNORM_RMS_EPS, "rms_norm_eps")
    add(Keys.Attention.LAYERNORM_EPS, "layer_norm_epsilon", "layer_norm_eps")
    add(Keys.Attention.KEY_LENGTH, "head_dim")
    add(Keys.Attention.VALUE_LENGTH, "head_dim")
    # What the converters of these families write besides.
    if arch in (MODEL_ARCH.LLAMA, MODEL_ARCH.PHI3):
        width = config.get("head_dim") or config["hidden_size"] // heads
        said[Keys.Rope.DIMENSION_COUNT.format(arch=name)] = int(width * full.get("partial_rotary_factor", 1))
    if arch in (MODEL_ARCH.PHI3, MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3):
        said[Keys.Attention.SLIDING_WINDOW.format(arch=name)] = config.get("sliding_window") or 0
    add(Keys.LLM.ATTN_LOGIT_SOFTCAPPING, "attn_logit_softcapping")
    add(Keys.LLM.FINAL_LOGIT_SOFTCAPPING, "final_logit_softcapping")
    add(Keys.LLM.EXPERT_COUNT, "num_local_experts", "num_experts")
    add(Keys.LLM.EXPERT_USED_COUNT, "num_experts_per_tok")
    add(Keys.LLM.EXPERT_FEED_FORWARD_LENGTH, "moe_intermediate_size")
    if full and arch != MODEL_ARCH.GEMMA2:
        said[Keys.Rope.FREQ_BASE.format(arch=name)] = float(full["rope_theta"])
        if full.get("rope_type") in ("linear", "yarn"):
            said[Keys.Rope.SCALING_TYPE.format(arch=name)] = full["rope_type"]
            said[Keys.Rope.SCALING_FACTOR.format(arch=name)] = float(full["factor"])
    if arch == MODEL_ARCH.PHI3:
        trained = full.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
        said[Keys.Rope.SCALING_ORIG_CTX_LEN.format(arch=name)] = trained or config["max_position_embeddings"]
    if "sliding_attention" in rope:
        said[Keys.Rope.FREQ_BASE_SWA.format(arch=name)] = float(rope["sliding_attention"]["rope_theta"])
    return said


def frequency_factors(config, heads):
    """By which the frequencies of Llama 3.1 and later are divided."""
    rope = config["rope_parameters"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    trained, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for i in range(0, width, 2):
        length = 2 * math.pi * rope["rope_theta"] ** (i / width)
        if length < trained / high:
            factors.append(1.0)
        elif length > trained / low:
            factors.append(float(factor))
        else:
            smooth = (trained / length - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def tensors(case, config, arch, heads, stored):
    """Each tensor: its name, those that it is made of, and how."""
    layers = config.get("num_hidden_layers") or config["n_layer"]
    names = gguf.get_tensor_name_map(arch, layers)

    def called(name):
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            sys.exit(f"{case}: the package has no name for {name}")
        return found

    made, stacks = [], {}
    for name in stored:
        if ".experts." in name:
            before, rest = name.split(".experts.")
            number, matrix = rest.split(".", 1)
            stacks.setdefault((before, matrix), {})[int(number)] = name
            continue
        tensor = {"name": called(name), "from": [name]}
        if arch == MODEL_ARCH.LLAMA and ".q_proj." in name:
            tensor["pairs"] = heads
        if arch == MODEL_ARCH.LLAMA and ".k_proj." in name:
            tensor["pairs"] = config.get("num_key_value_heads") or heads
        if arch in (MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3) and name.endswith("norm.weight"):
            tensor["plus"] = 1
        if arch == MODEL_ARCH.GPT2 and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            tensor["transposed"] = True
        made.append(tensor)
    for (before, matrix), numbered in stacks.items():
        # A stack is called by the layer and the matrix.
        layer = before.split("layers.")[1].split(".")[0]
        forms = [f"{before}.experts.{matrix}", f"layers.{layer}.feed_forward.experts.{matrix}"]
        name = next(filter(None, (names.get_name(form, try_suffixes=(".weight",)) for form in forms)), None)
        if name is None:
            sys.exit(f"{case}: the package has no name for {forms}")
        made.append({"name": name, "from": [numbered[i] for i in sorted(numbered)], "stacked": True})
    for kind, key in ((gguf.MODEL_TENSOR.ROPE_FACTORS_LONG, "long_factor"), (gguf.MODEL_TENSOR.ROPE_FACTORS_SHORT, "short_factor")):
        if factors := (config.get("rope_parameters") or {}).get(key):
            made.append({"name": gguf.TENSOR_NAMES[kind] + ".weight", "numbers": factors})
    if (config.get("rope_parameters") or {}).get("rope_type") == "llama3":
        made.append({"name": gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS] + ".weight", "numbers": frequency_factors(config, heads)})
    return made


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    files = {}
    for case, arch in CASES.items():
        folder = Path(sys.argv[1]) / case
        config = json.loads((folder / "config.json").read_text())
        stored = [t["name"] for t in json.loads((folder / "params.json").read_text())["tensors"]]
        heads = config.get("num_attention_heads") or config["n_head"]
        files[case] = {"metadata": metadata(config, arch, heads), "tensors": tensors(case, config, arch, heads, stored)}
    # A trained model of the repository, whose tensors the file of its checkpoint lists.
    folder = Path(__file__).parent.parent / "examples/demo/dense"
    config = json.loads((folder / "config.json").read_text())
    with open(folder / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    stored, heads = [name for name in header if name != "__metadata__"], config["num_attention_heads"]
    described = tensors("demo", config, MODEL_ARCH.LLAMA, heads, stored)
    files["demo"] = {"metadata": metadata(config, MODEL_ARCH.LLAMA, heads), "tensors": described}
    lines = [f"{json.dumps(case)}: {json.dumps(file)}" for case, file in files.items()]
    Path(sys.argv[2]).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
