"""How fast the GPU of this machine runs what the kit holds, as shares of limits that are measured in the same run, beside PyTorch where it is installed.

    python3 bench.py [--only NAME]... [--target TARGET] [--no-torch] [-o FILE]

Prints a record in Markdown, and appends it to FILE [default: results.md in the kit], to be copied to bench/RESULTS-cuda.md. Without a GPU: "skipped: no CUDA
device". --target times other code of the kit, without looking for a GPU.
"""

import argparse
import datetime
import json
import pathlib
import shlex
import subprocess
import sys

import common

DECODING = ["-p", "0", "-n", "128", "-d", "512", "-b", "1,8,32"]
# One prompt, alone in its steps.
PROMPTS = ["-p", "2048,8192", "-n", "0", "--step-tokens", "8192"]
FAR = ["-p", "0", "-n", "64", "-d", "8192", "-b", "1,8"]

# A name, the artifact, arguments of `xfrun bench`.
TESTS = [
    ("8B bf16, decoding", "llama-8b-bf16", DECODING),
    ("8B bf16, prompts", "llama-8b-bf16", PROMPTS),
    ("8B bf16, decoding behind 8192 tokens", "llama-8b-bf16", FAR),
    ("8B int4, decoding", "llama-8b-int4", DECODING),
    ("8B int4, prompts", "llama-8b-int4", PROMPTS),
    ("30B-A3B bf16, decoding", "qwen3-30b-a3b-bf16", DECODING),
    ("30B-A3B bf16, prompts", "qwen3-30b-a3b-bf16", PROMPTS),
    ("4 layers of latents and experts bf16, decoding", "deepseek-v3-4-layers-bf16", DECODING),
    ("4 layers of latents and experts bf16, prompts", "deepseek-v3-4-layers-bf16", PROMPTS),
]


def driver():
    """Of the kernel, where it says so."""
    try:
        return pathlib.Path("/proc/driver/nvidia/version").read_text().splitlines()[0].split("  ")[1].strip()
    except (OSError, IndexError):
        return "driver not said"


def mean(row, name):
    value = row.get(name)
    return value["mean"] if isinstance(value, dict) else value


def share(value):
    return f"{100 * value:.0f} %" if value else "-"


def rows_of(result, torch):
    """Lines of the table; the last column is how often PyTorch's rate, where it has one for an 8B decoder in bf16."""
    for row in result["rows"]:
        rate = mean(row, "tokens_per_second")
        prefixes = [f"decoding {row['batch']} "] if row["depth"] == 512 else [f"prompt of {row['tokens']} "]
        beside = [value for name, value in torch.items() if any(name.startswith(prefix) for prefix in prefixes)]
        ratio = f"{rate / beside[0]:.2f}" if beside else "-"
        settled = "" if row.get("settled", True) else " (not settled)"
        yield f"| {row['test']} | {row['batch']} | {row['depth']} | {rate:.1f}{settled} | {share(mean(row, 'of_read'))} | {share(mean(row, 'of_products'))} | {ratio} |"


def pytorch():
    """What PyTorch reaches here: its version and numbers by name; why there are none."""
    script = common.KIT / "torch_side.py"
    try:
        ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=550)
    except subprocess.TimeoutExpired:
        return None, {}, ["not done after 550 s"]
    said = [line for line in ran.stderr.splitlines() if line.strip()]
    if ran.returncode != 0:
        return None, {}, said[-1:] or [f"exit code {ran.returncode}"]
    found = json.loads(ran.stdout.splitlines()[-1])
    return found["torch"], found["found"], [line for line in said if line.startswith(("decoding", "attention"))]


def main():
    parser = argparse.ArgumentParser(description="Times what a GPU runs.")
    parser.add_argument("--only", action="append", metavar="NAME", help="tests with this in their name; may repeat")
    parser.add_argument("--target", help="of the artifacts [default: the best that the GPU runs]")
    parser.add_argument("--no-torch", action="store_true", help="do not run PyTorch beside")
    parser.add_argument("--timeout", type=int, default=570, help="seconds that a test may take [default: %(default)s]")
    parser.add_argument("-o", "--output", default=str(common.KIT / "results.md"))
    parser.add_argument("arguments", nargs="*", help="of `xfrun bench`, behind --, in place of the tests' own")
    arguments = parser.parse_args()
    if arguments.target:
        target, where = arguments.target, "no GPU looked for"
    else:
        device = common.gpu_or_skip()
        target = common.targets_of(device)[-1]
        where = f"{device['name']} ({device['arch']}, {device['memory_total_bytes'] / 1e9:.0f} GB), CUDA {device['cuda_version']}, {driver()}"
    tests = [test for test in TESTS if not arguments.only or any(part in test[0] for part in arguments.only)]
    if not tests:
        sys.exit("error: no test has that in its name")
    version, torch, trouble = (None, {}, ["not asked for"]) if arguments.no_torch else pytorch()
    lines = [f"## {datetime.date.today()}, {where}", "", f"Commit {common.about()['commit']}, `{target}`; `{shlex.join(['bench.py', *sys.argv[1:]])}`.", ""]
    failed = 0
    with common.Unpacked() as unpacked:
        for name, artifact, own in tests:
            packed = common.KIT / "bench" / f"{artifact}.xfm.gz"
            command = ["--target", target, "--checkpoint", "random", *(arguments.arguments or own), "--format", "json"]
            lines += [f"### {name}", "", f"`xfrun bench {artifact}.xfm {' '.join(command)}`", ""]
            try:
                result = json.loads(common.xfrun("bench", unpacked.artifact(packed), *command, timeout=arguments.timeout))
            except (RuntimeError, OSError) as error:
                failed += 1
                lines += [f"FAILED: {error}", ""]
                print(f"FAIL {name}: {error}", flush=True)
                continue
            beside = torch if artifact == "llama-8b-bf16" else {}
            lines += ["| test | sequences | behind | tokens/s | of reading | of products | times PyTorch |", "|---|--:|--:|--:|--:|--:|--:|"]
            lines += [*rows_of(result, beside), ""]
            print(f"done {name}", flush=True)
    lines += [f"### PyTorch {version or ''}".strip(), ""]
    lines += [f"- {name}: {value:.1f}" for name, value in torch.items()]
    lines += [f"- not run: {problem}" for problem in trouble] + [""]
    record = "\n".join(lines)
    print(f"\n{record}")
    with open(arguments.output, "a") as out:
        out.write(record + "\n")
    print(f"appended to {arguments.output}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
