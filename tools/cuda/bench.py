"""How fast the GPU of this machine runs what the kit holds, as shares of limits that are measured in the same run, beside PyTorch where it is installed.

    python3 bench.py [--only NAME]... [--target TARGET] [--no-torch | --torch-only | --torch-from FILE] [-o FILE]

Prints a record in Markdown, and appends it to FILE [default: results.md in the kit, or here where the kit cannot be written], each test as soon as it is done, to be
copied to bench/RESULTS-cuda.md. Without a GPU: "skipped: no CUDA device". --target times other code of the kit, without looking for a GPU.

Where a command may take only some minutes: PyTorch by itself (`python3 torch_side.py >torch.jsonl`, whose --only names parts), then tests one by one, with its
numbers beside (`python3 bench.py --only '8B bf16, decoding' --torch-from torch.jsonl`).
"""

import argparse
import datetime
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile

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
    """Lines of the table; the last column is how often PyTorch's rate, the best that it has for an 8B decoder in bf16."""
    for row in result["rows"]:
        rate = mean(row, "tokens_per_second")
        prefixes = [f"decoding {row['batch']} "] if row["depth"] == 512 else [f"prompt of {row['tokens']} "]
        beside = [value for name, value in torch.items() if any(name.startswith(prefix) for prefix in prefixes)]
        ratio = f"{rate / max(beside):.2f}" if beside else "-"
        settled = "" if row.get("settled", True) else " (not settled)"
        yield f"| {row['test']} | {row['batch']} | {row['depth']} | {rate:.1f}{settled} | {share(mean(row, 'of_read'))} | {share(mean(row, 'of_products'))} | {ratio} |"


def said(text):
    """What lines of torch_side.py say: PyTorch's version, numbers by name, and what there is no number of. The last line may be cut off."""
    version, found, trouble = None, {}, []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict):
            continue
        version = entry.get("torch", version)
        if "value" in entry:
            found[entry["name"]] = entry["value"]
        elif "problem" in entry:
            trouble.append(f"{entry['name']}: {entry['problem']}")
    return version, found, trouble


def pytorch(timeout):
    """What PyTorch reaches here, as `said`, as far as it comes within so many seconds."""
    command = [sys.executable, str(common.KIT / "torch_side.py")]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        # A group of its own: what it starts to compile with ends too. A pipe would stay open for as long as one of those lives.
        child = subprocess.Popen(command, stdout=out, stderr=log, start_new_session=True)
        try:
            ended = child.wait(timeout)
        except subprocess.TimeoutExpired:
            ended = f"not done after {timeout} s"
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.wait()
        out.seek(0)
        log.seek(0)
        version, found, trouble = said(out.read())
        if ended != 0:
            last = [line for line in log.read().splitlines() if line.strip()][-1:]
            trouble.append(ended if isinstance(ended, str) else (last or [f"exit code {ended}"])[0])
    return version, found, trouble


def default_output():
    """Beside the scripts, or here where nothing may be written there."""
    folder = common.KIT if os.access(common.KIT, os.W_OK) else pathlib.Path.cwd()
    return str(folder / "results.md")


class Record:
    """Lines that are printed and appended to a file at once: what ends the program early takes nothing of what was measured."""

    def __init__(self, path):
        self.path = path

    def add(self, *lines):
        text = "\n".join(lines)
        print(text, flush=True)
        with open(self.path, "a") as out:
            out.write(text + "\n")


def main():
    parser = argparse.ArgumentParser(description="Times what a GPU runs.")
    parser.add_argument("--only", action="append", metavar="NAME", help="tests with this in their name; may repeat")
    parser.add_argument("--target", help="of the artifacts [default: the best that the GPU runs]")
    beside = parser.add_mutually_exclusive_group()
    beside.add_argument("--no-torch", action="store_true", help="do not run PyTorch beside")
    beside.add_argument("--torch-only", action="store_true", help="run PyTorch and nothing else")
    beside.add_argument("--torch-from", metavar="FILE", help="what torch_side.py printed earlier, in place of running it")
    parser.add_argument("--timeout", type=int, default=570, help="seconds that a test, or PyTorch, may take [default: %(default)s]")
    parser.add_argument("-o", "--output", default=default_output(), help="where to append the record [default: %(default)s]")
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
    record = Record(arguments.output)
    record.add(f"## {datetime.date.today()}, {where}", "", f"Commit {common.about()['commit']}, `{target}`; `{shlex.join(['bench.py', *sys.argv[1:]])}`.", "")
    if arguments.torch_from:
        version, torch, trouble = said(pathlib.Path(arguments.torch_from).read_text())
    elif arguments.no_torch:
        version, torch, trouble = None, {}, ["not asked for"]
    else:
        version, torch, trouble = pytorch(arguments.timeout)
    record.add(f"### PyTorch {version or ''}".strip(), "", *[f"- {name}: {value:.1f}" for name, value in torch.items()], *[f"- not run: {problem}" for problem in trouble], "")
    failed, unpacked = 0, common.Unpacked()
    for name, artifact, own in [] if arguments.torch_only else tests:
        packed = common.KIT / "bench" / f"{artifact}.xfm.gz"
        command = ["--target", target, "--checkpoint", "random", *(arguments.arguments or own), "--format", "json"]
        record.add(f"### {name}", "", f"`xfrun bench {artifact}.xfm {' '.join(command)}`", "")
        try:
            result = json.loads(common.xfrun("bench", unpacked.artifact(packed), *command, timeout=arguments.timeout))
        except (RuntimeError, OSError) as error:
            failed += 1
            record.add(f"FAILED: {error}", "")
            print(f"FAIL {name}: {error}", flush=True)
            continue
        numbers = torch if artifact == "llama-8b-bf16" else {}
        record.add("| test | sequences | behind | tokens/s | of reading | of products | times PyTorch |", "|---|--:|--:|--:|--:|--:|--:|", *rows_of(result, numbers), "")
    print(f"appended to {arguments.output}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
