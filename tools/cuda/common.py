"""What check.py and bench.py share: the kit's folder, its runtime, the GPU. Python 3 alone."""

import array
import atexit
import functools
import gzip
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

KIT = pathlib.Path(__file__).resolve().parent
# Of the command line: no GPU that code runs on.
NO_DEVICE = 4


def temporary():
    """A folder that is there until the program ends."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="xfc-cuda-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def version(text):
    return [int(part) for part in text.split(".")]


def ensure_glibc(wanted):
    """Ends the program where the system's C library is older than the runtime asks for, which says so less clearly; `wanted` is empty where it needs none."""
    try:
        name, own = os.confstr("CS_GNU_LIBC_VERSION").split()
    except (AttributeError, OSError, ValueError):
        return
    if wanted and name == "glibc" and version(own) < version(wanted):
        sys.exit(f"error: the kit's runtime needs glibc {wanted} or later, and this machine has {own}: build the kit on a system that is as old")


@functools.lru_cache(maxsize=None)
def runtime():
    """The path of `xfrun`: in the kit, or of a copy where the kit came without permission to execute, or lies where nothing may be executed."""
    ensure_glibc(about().get("glibc", ""))
    path = KIT / "xfrun"
    for attempt in range(2):
        try:
            subprocess.run([str(path), "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            return str(path)
        except PermissionError:
            if attempt:
                sys.exit(f"error: {path} may not be executed: let TMPDIR name a folder in which programs may be")
        except OSError as error:
            sys.exit(f"error: {path} does not run here: {error}")
        copy = temporary() / "xfrun"
        shutil.copyfile(path, copy)
        copy.chmod(0o755)
        path = copy


def without_end(text, end):
    return text[: -len(end)] if text.endswith(end) else text


def xfrun(*arguments, timeout=600, settings=None):
    """Runs the runtime: its output; raises RuntimeError with what it says where it fails. `settings` are variables of its environment."""
    command = [runtime(), *map(str, arguments)]
    environment = {**os.environ, "NO_COLOR": "1", **(settings or {})}
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done after {timeout} s") from None
    if ran.returncode != 0:
        raise RuntimeError(f"exit code {ran.returncode}: {ran.stderr.strip() or ran.stdout.strip()}")
    return ran.stdout


def gpu():
    """The first GPU and its driver as `xfrun devices` has them; None where there is none. What else goes wrong is an error."""
    ran = subprocess.run([runtime(), "devices", "--format", "json"], capture_output=True, text=True)
    if ran.returncode == NO_DEVICE:
        return None
    if ran.returncode != 0:
        sys.exit(f"error: `xfrun devices` ends with {ran.returncode}: {ran.stderr.strip()}")
    found = json.loads(ran.stdout)
    device = {**found["devices"][0], "cuda_version": found["cuda_version"]}
    if device.get("problem"):
        sys.exit(f"error: GPU 0 ({device['name']}): {device['problem']}")
    return device


def gpu_or_skip():
    """The GPU; where there is none, says so and ends the program."""
    device = gpu()
    if device is None:
        print("skipped: no CUDA device")
        sys.exit(0)
    if device["capability"] < [8, 0]:
        print(f"skipped: no CUDA device of compute capability 8.0 or later, only {device['name']} ({device['arch']})")
        sys.exit(0)
    return device


def targets_of(device):
    """The targets of the kit's artifacts that a GPU runs."""
    return ["cuda:sm_80"] + (["cuda:sm_90a"] if device["capability"] == [9, 0] else [])


def about():
    return json.loads((KIT / "about.json").read_text())


class Unpacked:
    """Artifacts of the kit, unpacked into a folder that disappears."""

    def __init__(self):
        self.folder = temporary()

    def artifact(self, packed):
        path = self.folder / without_end("-".join(packed.relative_to(KIT).parts), ".gz")
        if not path.exists():
            with gzip.open(packed, "rb") as source, open(path, "wb") as out:
                shutil.copyfileobj(source, out)
        return path


def read_tensors(path):
    """A safetensors file: {name: (shape, values)}; f32, i32 and i64."""
    data = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, tensor in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + offset for offset in tensor["data_offsets"])
        values = array.array({"F32": "f", "I32": "i", "I64": "q"}[tensor["dtype"]])
        values.frombytes(data[begin:end])
        tensors[name] = (tensor["shape"], values)
    return tensors


def write_tensors(path, tensors):
    """The same the other way: arrays of floats and of integers of 64 bits."""
    header, at = {}, 0
    for name, (shape, values) in tensors.items():
        size = len(values) * values.itemsize
        header[name] = {"dtype": {"f": "F32", "q": "I64"}[values.typecode], "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, values in tensors.values():
            out.write(values.tobytes())


def fill(spec, seed):
    """The values of a tensor, which follow from its name (tests/reference/README.md)."""
    every = (1 << 64) - 1
    key = 0xCBF29CE484222325
    for byte in spec["name"].encode():
        key = ((key ^ byte) * 0x100000001B3) & every
    key ^= seed
    n = 1
    for size in spec["shape"]:
        n *= size
    offset, scale = spec["offset"], spec["scale"]
    values = array.array("f", bytes(4 * n))
    for i in range(n):
        key = (key + 0x9E3779B97F4A7C15) & every
        z = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & every
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & every
        z ^= z >> 31
        values[i] = offset + scale * ((z >> 40) * 2.0**-23 - 1.0)
    return values
