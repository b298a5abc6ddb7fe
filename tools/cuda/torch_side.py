"""What PyTorch reaches on the same GPU: products and attention by its libraries, and an 8B decoder of the same shape, compiled, its decoding steps recorded
as CUDA graphs. Random weights. Prints JSON: {name: number}; needs torch and a GPU, and says on standard error what it could not do.

    python3 torch_side.py [--layers N] [--only products|attention|decoder]...
"""

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# Llama-3.1-8B.
WIDTH, HEADS, KV_HEADS, HEAD, INNER, VOCABULARY = 4096, 32, 8, 128, 14336, 128256
BF16 = torch.bfloat16


def seconds(step, repeats):
    """Of one call, the median of several, each over so many."""
    for _ in range(3):
        step()
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / repeats)
    return sorted(times)[2]


def random(*shape):
    return torch.randn(*shape, device="cuda", dtype=BF16) * 0.02


def products(found):
    for n in (4096, 8192):
        a, b = random(n, n), random(n, n)
        found[f"product of {n}, TFLOP/s"] = 2 * n**3 / seconds(lambda: a @ b, 20) / 1e12
    source = torch.empty(1 << 31, device="cuda", dtype=torch.uint8)
    out = torch.empty_like(source)
    found["copying, GB/s read and written"] = 2 * source.numel() / seconds(lambda: out.copy_(source), 5) / 1e9


def attention(found):
    tokens = 8192
    q, k, v = (random(1, heads, tokens, HEAD) for heads in (HEADS, HEADS, HEADS))
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        try:
            with sdpa_kernel(backend):
                once = seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), 5)
            found[f"causal attention of {tokens} by {name}, TFLOP/s"] = 4 * HEADS * HEAD * tokens**2 / 2 / once / 1e12
        except RuntimeError as error:
            print(f"attention by {name}: {error}", file=sys.stderr)


class Decoder:
    """Grouped queries, rotary positions, a gated feed-forward layer, norms before each; one step over caches of a fixed length."""

    def __init__(self, layers, sequences, context):
        self.layers = [
            (torch.ones(WIDTH, device="cuda", dtype=BF16), random((HEADS + 2 * KV_HEADS) * HEAD, WIDTH), random(WIDTH, HEADS * HEAD),
             torch.ones(WIDTH, device="cuda", dtype=BF16), random(2 * INNER, WIDTH), random(WIDTH, INNER))
            for _ in range(layers)
        ]
        self.embedding, self.head = random(VOCABULARY, WIDTH), random(VOCABULARY, WIDTH)
        angles = torch.outer(torch.arange(context, device="cuda"), 500000.0 ** (-torch.arange(0, HEAD, 2, device="cuda") / HEAD))
        self.cos, self.sin = angles.cos().to(BF16), angles.sin().to(BF16)
        self.caches(sequences, context)

    def caches(self, sequences, context):
        shape = (sequences, KV_HEADS, context, HEAD)
        self.kept = [tuple(torch.zeros(shape, device="cuda", dtype=BF16) for _ in range(2)) for _ in self.layers]
        self.places = torch.arange(context, device="cuda")

    def turn(self, x, at):
        a, b = x.chunk(2, dim=-1)
        cos, sin = self.cos[at], self.sin[at]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def step(self, ids, at):
        """`ids [B, N]` at positions `at [N]`; the likeliest next tokens `[B, 1]`."""
        x = self.embedding[ids]
        sequences, n = ids.shape
        seen = (self.places[None, :] <= at[:, None]) if n == 1 else None
        for (norm, qkv, out, norm2, up, down), (keys, values) in zip(self.layers, self.kept):
            y = F.linear(F.rms_norm(x, (WIDTH,), norm), qkv)
            q, k, v = (part.view(sequences, n, -1, HEAD).transpose(1, 2) for part in y.split((HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD), dim=-1))
            q, k = self.turn(q, at), self.turn(k, at)
            keys.index_copy_(2, at, k)
            values.index_copy_(2, at, v)
            if n == 1:
                y = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen, enable_gqa=True)
            else:
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + F.linear(y.transpose(1, 2).reshape(sequences, n, HEADS * HEAD), out)
            gate, raised = F.linear(F.rms_norm(x, (WIDTH,), norm2), up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * raised, down)
        return F.linear(x[:, -1:], self.head).argmax(-1)


def recorded(step):
    """A call as a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def decoder(found, layers):
    # 512 tokens that are there already, and room for 128.
    model = Decoder(layers, 1, 640)
    share = 32 / layers
    for sequences in (1, 8, 32):
        model.caches(sequences, 640)
        ids = torch.zeros((sequences, 1), device="cuda", dtype=torch.long)
        at = torch.full((1,), 512, device="cuda")
        once = None
        for how, step in (("compiled", torch.compile(model.step, fullgraph=True, mode="max-autotune-no-cudagraphs")), ("eager", model.step)):
            try:
                once = seconds(recorded(lambda: step(ids, at)), 32)
                found[f"decoding {sequences} {how}, tokens/s"] = sequences / once / share
                break
            except Exception as error:  # What a compiler needs may not be there (a C compiler, Triton).
                print(f"decoding {sequences} {how}: {(str(error).splitlines() or [repr(error)])[0]}", file=sys.stderr)
        torch._dynamo.reset()
    for tokens in (2048, 8192):
        try:
            del model.kept
            if model.cos.shape[0] < tokens:
                # The old one goes first: two of them may not fit.
                del model
                model = Decoder(layers, 1, tokens)
            model.caches(1, tokens)
            ids = torch.zeros((1, tokens), device="cuda", dtype=torch.long)
            at = torch.arange(tokens, device="cuda")
            found[f"prompt of {tokens} eager, tokens/s"] = tokens / seconds(lambda: model.step(ids, at), 1) / share
        except torch.OutOfMemoryError as error:
            print(f"prompt of {tokens}: {str(error).splitlines()[0]}", file=sys.stderr)
            return


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=32, help="of 32; times are scaled [default: 32]")
    parser.add_argument("--only", action="append", choices=["products", "attention", "decoder"])
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    wanted = arguments.only or ["products", "attention", "decoder"]
    found = {}
    with torch.inference_mode():
        if "products" in wanted:
            products(found)
        if "attention" in wanted:
            attention(found)
        if "decoder" in wanted:
            decoder(found, arguments.layers)
    print(json.dumps({"torch": torch.__version__, "gpu": torch.cuda.get_device_name(), "found": found}))


if __name__ == "__main__":
    main()
