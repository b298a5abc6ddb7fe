"""What PyTorch reaches on the same GPU: products and attention by its libraries, and an 8B decoder of the same shape, its layers compiled, its decoding steps
recorded as CUDA graphs. Random weights. Prints a line of JSON as soon as there is something to say, so that what ends it early leaves the lines before:
{"torch": version, "gpu": name}, {"name": ..., "value": number}, and {"name": ..., "problem": why there is no number}. Needs torch and a GPU.

    python3 torch_side.py [--layers N] [--only products|attention|decoder]... [--no-compile]
"""

import argparse
import contextlib
import json
import sys
import time

import torch
import torch.nn.functional as F

# Llama-3.1-8B.
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, INNER, VOCABULARY = 32, 4096, 32, 8, 128, 14336, 128256
BF16 = torch.bfloat16
# Tokens behind which decoding is timed: in the middle of the 128 that follow 512.
DEPTH = 576
PARTS = ["products", "attention", "decoder"]


def say(**line):
    print(json.dumps(line), flush=True)


@contextlib.contextmanager
def attempt(name):
    """Says why there is no number, whatever the reason is: a library, a compiler or memory may be missing, a function be older or newer."""
    try:
        yield
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        say(name=name, problem=f"{type(error).__name__}: {(lines or ['no message'])[0]}")


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


def products():
    for n in (4096, 8192):
        name = f"product of {n}, TFLOP/s"
        with attempt(name):
            a, b = random(n, n), random(n, n)
            say(name=name, value=2 * n**3 / seconds(lambda: a @ b, 20) / 1e12)
    name = "copying, GB/s read and written"
    with attempt(name):
        source = torch.empty(1 << 31, device="cuda", dtype=torch.uint8)
        out = torch.empty_like(source)
        say(name=name, value=2 * source.numel() / seconds(lambda: out.copy_(source), 5) / 1e9)


def attention():
    tokens = 8192
    for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
        name = f"causal attention of {tokens} by {backend.split('_')[0].lower()}, TFLOP/s"
        with attempt(name):
            # Neither is in every version.
            from torch.nn.attention import SDPBackend, sdpa_kernel

            q, k, v = (random(1, heads, tokens, HEAD) for heads in (HEADS, HEADS, HEADS))
            with sdpa_kernel(getattr(SDPBackend, backend)):
                once = seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), 5)
            say(name=name, value=4 * HEADS * HEAD * tokens**2 / 2 / once / 1e12)


def norm(x, weight):
    return F.rms_norm(x, (WIDTH,), weight)


def turn(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def layer(x, at, cos, sin, weights, keys, values):
    """`x [B, N, D]` at positions `at [N]`, the last that caches have room for: one query sees all keys without a mask, with which no fast kernel would be
    taken; several are a whole prompt."""
    first, qkv, out, second, up, down = weights
    sequences, n, _ = x.shape
    parts = F.linear(norm(x, first), qkv).split((HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD), dim=-1)
    q, k, v = (part.view(sequences, n, -1, HEAD).transpose(1, 2) for part in parts)
    q, k = turn(q, cos, sin), turn(k, cos, sin)
    keys.index_copy_(2, at, k)
    values.index_copy_(2, at, v)
    if n == 1:
        k, v = keys, values
    y = F.scaled_dot_product_attention(q, k, v, is_causal=n > 1, enable_gqa=True)
    x = x + F.linear(y.transpose(1, 2).reshape(sequences, n, HEADS * HEAD), out)
    gate, raised = F.linear(norm(x, second), up).chunk(2, dim=-1)
    return x + F.linear(F.silu(gate) * raised, down)


class Decoder:
    """Grouped queries, rotary positions, a gated feed-forward layer, norms before each."""

    def __init__(self, layers):
        ones = lambda: torch.ones(WIDTH, device="cuda", dtype=BF16)
        self.layers = [
            (ones(), random((HEADS + 2 * KV_HEADS) * HEAD, WIDTH), random(WIDTH, HEADS * HEAD), ones(), random(2 * INNER, WIDTH), random(WIDTH, INNER))
            for _ in range(layers)
        ]
        self.norm, self.embedding, self.head = ones(), random(VOCABULARY, WIDTH), random(VOCABULARY, WIDTH)

    def step(self, sequences, tokens, before, layer):
        """A call that runs a step of so many tokens each, behind others, and gives the likeliest next ones; with caches of its own."""
        length = before + tokens
        shape = (sequences, KV_HEADS, length, HEAD)
        caches = [tuple(torch.zeros(shape, device="cuda", dtype=BF16) for _ in range(2)) for _ in self.layers]
        ids = torch.zeros((sequences, tokens), device="cuda", dtype=torch.long)
        at = torch.arange(before, length, device="cuda")
        angles = torch.outer(at, 500000.0 ** (-torch.arange(0, HEAD, 2, device="cuda") / HEAD))
        cos, sin = angles.cos().to(BF16), angles.sin().to(BF16)

        def run():
            x = self.embedding[ids]
            for weights, (keys, values) in zip(self.layers, caches):
                x = layer(x, at, cos, sin, weights, keys, values)
            return F.linear(norm(x[:, -1:], self.norm), self.head).argmax(-1)

        return run


def recorded(step):
    """A call as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def whole(times, layers):
    """The time of all layers, of those of so many and of twice as many: embedding and head are there once."""
    if len(times) == 1:
        return times[0]
    if times[1] <= times[0]:
        raise ValueError(f"twice as many layers take no longer: {times[0]:.2e} and {times[1]:.2e} s")
    return times[0] + (times[1] - times[0]) / layers * (LAYERS - layers)


def decoder(layers, may_compile):
    """All tests with one model; with fewer layers the same with twice as many, from which the rest follows."""
    forms = [("eager", layer)]
    if may_compile:
        with attempt("compiling"):
            # A layer alone: all are the same to the compiler, which is done in seconds.
            forms.insert(0, ("compiled", torch.compile(layer, fullgraph=True, dynamic=False)))
    # Name, tokens, repeats, and what makes the call.
    tests = [(f"decoding {b} {how}, tokens/s", b, 32, lambda model, b=b, form=form: recorded(model.step(b, 1, DEPTH, form))) for b in (1, 8, 32) for how, form in forms]
    tests += [(f"prompt of {n} {how}, tokens/s", n, 1, lambda model, n=n, form=form: model.step(1, n, 0, form)) for n in (2048, 8192) for how, form in forms]
    counts = [layers] if layers == LAYERS else [layers, 2 * layers]
    times = {}
    for count in counts:
        model = None
        with attempt(f"a decoder of {count} layers"):
            model = Decoder(count)
        for name, tokens, repeats, call in tests if model else []:
            with attempt(name):
                times.setdefault(name, []).append(seconds(call(model), repeats))
                if len(times[name]) == len(counts):
                    say(name=name, value=tokens / whole(times[name], layers))
            torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser(description="Times PyTorch.")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of 32, or up to 16: twice as many are timed too, and the rest follows [default: %(default)s]")
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part; may repeat")
    parser.add_argument("--no-compile", action="store_true", help="no torch.compile")
    arguments = parser.parse_args()
    if arguments.layers != LAYERS and not 1 <= arguments.layers <= LAYERS // 2:
        parser.error(f"--layers is {LAYERS}, or 1 to {LAYERS // 2}")
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    say(torch=torch.__version__, gpu=torch.cuda.get_device_name())
    wanted = arguments.only or PARTS
    with torch.inference_mode():
        if "products" in wanted:
            products()
        if "attention" in wanted:
            attention()
        if "decoder" in wanted:
            decoder(arguments.layers, not arguments.no_compile)


if __name__ == "__main__":
    main()
