"""Whether the GPU of this machine computes what it should: every reference case of the kit against what other implementations computed, and types of
few bits against the same model on the processor. A line each; exit code 1 where one fails.

    python3 check.py [--target TARGET]... [--against TARGET] [--case NAME]... [--shard I/N] [--at-once N]

Without --target: the code that the GPU runs, and where there is no GPU "skipped: no CUDA device". With it no GPU is looked for: `--target cpu:x86-64-v3
--against cpu:x86-64` has the comparisons made between two processors. --shard 2/4 is the second quarter of the cases, for machines that end a command
after some minutes. What the driver compiles is kept until the end, in a folder of its own.
"""

import argparse
import array
import concurrent.futures
import json
import math
import sys
import threading

import common

# The largest difference of a model's outputs, as compiler/check/src/compare.rs has it for `Tier::Model`.
F32, BF16 = 2e-4, 1 / 8


def furthest(got, want):
    """The largest difference of two lists of numbers; infinite where one is no number, or one is longer."""
    if len(got) != len(want):
        return math.inf
    return max((abs(a - b) if math.isfinite(a) and math.isfinite(b) else math.inf for a, b in zip(got, want)), default=math.inf)


class Case:
    """A reference case, with its checkpoint and inputs written out."""

    def __init__(self, folder, unpacked):
        self.folder, self.unpacked = folder, unpacked
        self.name = folder.name
        self.checkpoint = unpacked.folder / self.name
        self.checkpoint.mkdir()
        parameters = json.loads((folder / "params.json").read_text())
        seed = parameters["seed"]
        (self.checkpoint / "config.json").write_text((folder / "config.json").read_text())
        weights = {spec["name"]: (spec["shape"], common.fill(spec, seed)) for spec in parameters["tensors"]}
        common.write_tensors(self.checkpoint / "model.safetensors", weights)
        inputs = json.loads((folder / "inputs.json").read_text())
        self.greedy_steps = inputs["greedy_steps"]
        self.ids, self.floats = {}, {}
        for name, value in inputs["forward"].items():
            if isinstance(value, dict):
                self.floats[name] = (value["fill"]["shape"], common.fill(value["fill"], seed))
            else:
                self.ids[name] = value[0]
        ids = {name: ([1, len(row)], array.array("q", row)) for name, row in self.ids.items()}
        self.inputs = self.checkpoint / "inputs.safetensors"
        common.write_tensors(self.inputs, {**ids, **self.floats})
        self.golden = common.read_tensors(folder / "golden.safetensors")

    def forms(self):
        """Its artifacts by the types that they compute in."""
        packed = sorted(self.folder.glob("*.xfm.gz"))
        return {common.without_end(path.name, ".xfm.gz"): self.unpacked.artifact(path) for path in packed}

    def run(self, *arguments):
        """Runs the runtime, which keeps what it compiles for the runs after this one."""
        return common.xfrun(*arguments, settings={"XFC_CACHE_DIR": str(self.unpacked.folder / "cache")})

    def outputs(self, artifact, target):
        """What one step over all inputs computes, by name."""
        out = self.checkpoint / "out.safetensors"
        self.run("logits", artifact, "--target", target, "--checkpoint", self.checkpoint, "--inputs", self.inputs, "-o", out)
        return {name: values for name, (_, values) in common.read_tensors(out).items()}

    def generated(self, artifact, target):
        """The tokens that follow the prompt, the likeliest each time."""
        text = lambda name: ",".join(map(str, self.ids[name]))
        arguments = ["--tokens", text("input_ids")] if "input_ids" in self.ids else []
        if "decoder_input_ids" in self.ids:
            arguments += ["--tokens", "decoder_input_ids=" + text("decoder_input_ids")]
        if self.floats:
            path = self.checkpoint / "source.safetensors"
            common.write_tensors(path, self.floats)
            arguments += ["--inputs", path]
        arguments += ["--target", target, "--checkpoint", self.checkpoint, "-n", self.greedy_steps, "--json"]
        return json.loads(self.run("run", artifact, *arguments))["ids"]


class Report:
    def __init__(self):
        self.passed = self.failed = 0
        self.alone = threading.Lock()

    def check(self, what, compare):
        """`compare` gives how far two things are apart and how far they may be, in words; raises RuntimeError where it cannot."""
        try:
            fine, detail = compare()
        except RuntimeError as error:
            fine, detail = False, str(error)
        with self.alone:
            print(f"{'PASS' if fine else 'FAIL'} {what}: {detail}", flush=True)
            self.passed += fine
            self.failed += not fine


def apart(got, want, allowed):
    """Outputs by name, all of `want`."""
    missing = [name for name in want if name not in got]
    if missing or not want:
        return False, f"there is no output {', '.join(missing)}"
    largest = max(furthest(got[name], values) for name, values in want.items())
    return largest <= allowed, f"{largest:.1e} apart, {allowed:.1e} allowed"


def check(case, target, against, report):
    forms = case.forms()
    artifact = forms.pop("f32")
    golden = {name: values for name, (_, values) in case.golden.items() if "." not in name}
    report.check(f"{case.name} on {target}", lambda: apart(case.outputs(artifact, target), golden, F32))
    if case.greedy_steps > 0:
        want = list(case.golden["greedy.ids"][1])

        def greedy():
            got = case.generated(artifact, target)
            return got == want, f"{len(want)} tokens" if got == want else f"{got}, expected {want}"

        report.check(f"{case.name} on {target}, greedy tokens", greedy)
    for form, artifact in forms.items():
        compared = lambda: apart(case.outputs(artifact, target), case.outputs(artifact, against), BF16)
        report.check(f"{case.name} in {form} on {target}, against {against}", compared)


def shard(text):
    """`2/4` as numbers."""
    which, of = map(int, text.split("/"))
    if not 1 <= which <= of:
        raise ValueError(text)
    return which, of


def main():
    parser = argparse.ArgumentParser(description="Compares what a GPU computes with what it should.")
    parser.add_argument("--target", action="append", help="of the artifacts [default: what the GPU runs]")
    parser.add_argument("--against", default="cpu:x86-64-v3", help="what types of few bits are compared with [default: %(default)s]")
    parser.add_argument("--case", action="append", help="only this one; may repeat")
    parser.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help="the I-th of N parts of the cases")
    parser.add_argument("--at-once", type=int, default=4, metavar="N", help="cases that are run at a time [default: %(default)s]")
    arguments = parser.parse_args()
    targets = arguments.target
    if not targets:
        device = common.gpu_or_skip()
        targets = common.targets_of(device)
        print(f"{device['name']}, {device['arch']}, driver for CUDA {device['cuda_version']}; kit of commit {common.about()['commit']}")
    folders = sorted(path for path in (common.KIT / "cases").glob("*") if not arguments.case or path.name in arguments.case)
    unknown = set(arguments.case or []) - {path.name for path in folders}
    if unknown or not folders:
        sys.exit(f"error: the kit has no such case: {', '.join(sorted(unknown)) or 'it has none'}")
    which, of = arguments.shard
    folders = folders[which - 1 :: of]
    if not folders:
        sys.exit(f"error: there is no case in part {which} of {of}")
    report, unpacked = Report(), common.Unpacked()
    common.runtime()

    def all_of(folder):
        case = Case(folder, unpacked)
        for target in targets:
            check(case, target, arguments.against, report)

    with concurrent.futures.ThreadPoolExecutor(max(1, arguments.at_once)) as pool:
        # What goes wrong in a thread is raised here.
        list(pool.map(all_of, folders))
    print(f"{report.passed} passed, {report.failed} failed on {', '.join(targets)}")
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
