#!/usr/bin/env bash
# xfc beside llama.cpp on this machine: both run in turn, so that a change of the machine's speed meets both, and the ratios are printed.
#
#   bench/compare.sh LLAMA_BENCH MODEL.gguf [-p N] [-n N] [-d N] [-t N] [-r ROUNDS] -- XFC ARGUMENT...
#
# LLAMA_BENCH is the path of a llama-bench binary, MODEL.gguf what it runs. Behind `--` stand the command that runs the same shapes and its arguments:
# `target/release/xfrun bench model.xfm`, or `target/release/xfc bench qwen3 --dtype bf16`. A round is llama-bench without and with flash attention, then
# xfc; the better of llama.cpp's two is what xfc is compared with. Like is compared with like: Q8_0 with `--quant int8:g32`, Q4_0 with
# `--quant int4:g32`, BF16 with `--dtype bf16`.
set -euo pipefail
exec python3 - "$@" <<'PYTHON'
import argparse, json, statistics, subprocess, sys

own = sys.argv[1:]
if "--" not in own:
    sys.exit("error: no command of xfc\n  help: bench/compare.sh LLAMA_BENCH MODEL.gguf [OPTION...] -- target/release/xfrun bench model.xfm")
at = own.index("--")
parser = argparse.ArgumentParser(prog="bench/compare.sh", usage="%(prog)s LLAMA_BENCH MODEL.gguf [OPTION...] -- XFC ARGUMENT...")
parser.add_argument("llama_bench")
parser.add_argument("gguf")
parser.add_argument("-p", type=int, default=512, help="tokens of the prompt; 0 for none")
parser.add_argument("-n", type=int, default=64, help="tokens to generate; 0 for none")
parser.add_argument("-d", type=int, default=0, help="tokens there are before")
parser.add_argument("-t", type=int, default=2, help="threads")
parser.add_argument("-r", type=int, default=5, help="rounds")
args = parser.parse_args(own[:at])
xfc = own[at + 1:]


def run(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        sys.exit(f"error: {command[0]}: {error.strerror}")
    if done.returncode:
        sys.exit(f"error: {' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


tests = {name: [] for name, wanted in ((f"pp{args.p}", args.p), (f"tg{args.n}", args.n)) if wanted}
sizes = ["-p", str(args.p), "-n", str(args.n), "-d", str(args.d), "-t", str(args.t), "-r", "1"]
for number in range(args.r):
    measured = {name: {} for name in tests}
    for flash in ("0", "1"):
        for row in run([args.llama_bench, "-m", args.gguf, "-o", "json", "-fa", flash, *sizes]):
            name = f"tg{row['n_gen']}" if row["n_gen"] else f"pp{row['n_prompt']}"
            measured[name]["fa " + ("on" if flash == "1" else "off")] = row["avg_ts"]
    for row in run([*xfc, "--format", "json", *sizes])["rows"]:
        name = next(name for name in tests if row["test"].startswith(name))
        limit = "of_read" if name.startswith("tg") else "of_products"
        measured[name]["xfc"] = row["tokens_per_second"]["mean"]
        measured[name]["share"] = row[limit]["mean"]
        measured[name]["settled"] = row["settled"]
    for name, found in measured.items():
        tests[name].append(found)
        print(f"round {number + 1} of {args.r}: {name} {found}", file=sys.stderr)

print("| test | llama.cpp, fa off | fa on | xfc | of its limit | xfc / llama.cpp, by rounds | median |")
print("|---|--:|--:|--:|--:|---|--:|")
for name, rounds in tests.items():
    middle = lambda key: statistics.median(found[key] for found in rounds)
    better = "fa on" if middle("fa on") > middle("fa off") else "fa off"
    ratios = [found["xfc"] / found[better] for found in rounds]
    each = " ".join(f"{ratio:.2f}" + ("" if found["settled"] else "*") for ratio, found in zip(ratios, rounds))
    depth = f" @ d{args.d}" if args.d else ""
    print(f"| {name}{depth} | {middle('fa off'):.1f} | {middle('fa on'):.1f} | {middle('xfc'):.1f} | {middle('share'):.0%} | {each} | {statistics.median(ratios):.2f} |")
if any(not found["settled"] for rounds in tests.values() for found in rounds):
    print("\n\\* the machine was not the same before and after")
PYTHON
