#!/usr/bin/env python3
"""Runs a checkpoint folder with Hugging Face transformers and stores what every module returned, for `xfc verify --reference`.

    python3 tools/dump_reference.py CHECKPOINT_FOLDER -o dump.safetensors --text "The quick brown fox"
    python3 tools/dump_reference.py CHECKPOINT_FOLDER -o dump.safetensors --tokens 1,5,9 --dtype float32
    python3 tools/dump_reference.py CHECKPOINT_FOLDER -o dump.safetensors --inputs inputs.json

The file holds, with the batch of 1 taken off:

    inputs.NAME    each input of the forward pass (ids as int64)
    MODULE         the tensor that the module of this dotted name returned (the first, of a tuple), such as model.layers.3.mlp
    MODULE@2       what it returned when it was called again
    logits, ...    each tensor of the result, by its name

Needs torch, transformers and safetensors. With float64, the default, rounding is out of the question: what departs is wrong.
"""

import argparse
import json
import sys
from pathlib import Path


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a folder with config.json and safetensors")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the safetensors file to write")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--text", help="a text, read with the checkpoint's tokenizer")
    given.add_argument("--tokens", help="token ids with commas between them")
    given.add_argument("--inputs", type=Path, help='JSON: {"input_ids": [[1, 5, 9]], ...}, perhaps inside "forward"')
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    parser.add_argument("--attention", choices=["eager", "sdpa"], default="eager", help="which of its implementations of attention [default: eager]")
    parser.add_argument("--model-class", help="a class of transformers [default: the first of config.json's architectures]")
    return parser.parse_args()


def inputs_of(args, torch, transformers):
    """The inputs of the forward pass, with a batch of 1."""
    if args.inputs:
        named = json.loads(args.inputs.read_text())
        named = named.get("forward", named)
        tensors = {name: torch.tensor(values) for name, values in named.items()}
        return {name: t.unsqueeze(0) if t.dim() == 1 else t for name, t in tensors.items()}
    if args.tokens:
        return {"input_ids": torch.tensor([[int(token) for token in args.tokens.split(",")]])}
    if args.text:
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.checkpoint)
        return {"input_ids": tokenizer(args.text, return_tensors="pt")["input_ids"]}
    return {"input_ids": torch.arange(1, 17).unsqueeze(0)}


def first_tensor(value, torch):
    """The tensor that a module returned: itself, or the first of a tuple or of a named result."""
    if torch.is_tensor(value):
        return value
    if isinstance(value, (tuple, list)):
        return next((item for item in value if torch.is_tensor(item)), None)
    if hasattr(value, "to_tuple"):
        return first_tensor(value.to_tuple(), torch)
    return None


def stored(tensor, dtype, torch):
    """A tensor as the file holds it: without the batch, floats in one type, integers in 64 bits."""
    tensor = tensor.detach().cpu()
    if tensor.dim() > 1 and tensor.shape[0] == 1:
        tensor = tensor[0]
    tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor.to(torch.int64)
    # Views share memory, which the format does not allow.
    return tensor.contiguous().clone()


def main():
    args = arguments()
    try:
        import safetensors.torch
        import torch
        import transformers
    except ImportError as error:
        sys.exit(f"{error}: pip install torch transformers safetensors")
    config_file = args.checkpoint / "config.json"
    if not config_file.is_file():
        sys.exit(f"{config_file}: no such file; give a checkpoint folder")
    config = json.loads(config_file.read_text())
    name = args.model_class or (config.get("architectures") or ["AutoModelForCausalLM"])[0]
    if not hasattr(transformers, name):
        sys.exit(f"transformers has no class {name}; give another with --model-class")
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    model = getattr(transformers, name).from_pretrained(args.checkpoint, torch_dtype=dtype, attn_implementation=args.attention)
    model = model.to(dtype).eval()
    # Products of groups of rows, which experts are by default, have no float64.
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")

    values, calls = {}, {}

    def hook(path):
        def keep(_module, _given, returned):
            tensor = first_tensor(returned, torch)
            if tensor is not None:
                calls[path] = calls.get(path, 0) + 1
                key = path if calls[path] == 1 else f"{path}@{calls[path]}"
                values[key] = stored(tensor, dtype, torch)

        return keep

    for path, module in model.named_modules():
        if path:
            module.register_forward_hook(hook(path))
    inputs = inputs_of(args, torch, transformers)
    inputs = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    if model.config.is_encoder_decoder and "decoder_input_ids" not in inputs:
        # As in training: what is to be written, behind the token that begins it.
        start = torch.full((1, 1), model.config.decoder_start_token_id or 0)
        inputs["decoder_input_ids"] = torch.cat([start, inputs["input_ids"][:, :-2]], dim=1)
    with torch.no_grad():
        result = model(**inputs, use_cache=False) if "use_cache" in config else model(**inputs)
    for key, value in result.items():
        if torch.is_tensor(value):
            values[key] = stored(value, dtype, torch)
    for key, value in inputs.items():
        values[f"inputs.{key}"] = stored(value, dtype, torch)
    about = {"format": "xfc reference 1", "model_class": name, "transformers": transformers.__version__, "torch": torch.__version__}
    part = args.output.with_name(f".{args.output.name}.part")
    safetensors.torch.save_file(values, part, metadata=about)
    part.replace(args.output)
    print(f"{args.output}: {len(values)} tensors of {name} in {args.dtype}, inputs {', '.join(inputs)}")


if __name__ == "__main__":
    main()
