#!/usr/bin/env bash
# Makes sure that what building xfc needs is there; says nothing when it is.
#
#   tools/setup.sh [--download] [--lint] [--emulate] [--browse] [--assemble]
#
#   --download   also what tools/fetch_minilm.sh and tools/fetch_ptxas.sh need (python3 with pip)
#   --lint       also rustfmt and clippy
#   --emulate    also what tests of other processors need: QEMU's user mode, and Rust's library for AArch64
#   --browse     also a browser, in which tests open the pages of xfc inspect
#   --assemble   also ptxas, by which tests have code for GPUs assembled (tools/fetch_ptxas.sh: 47 MB from PyPI)
#
# On Debian and its relatives, missing packages are listed with their size and installed with apt-get (through sudo when not root).
# Elsewhere it prints what to install and stops.
set -euo pipefail

rust_wanted=1.95
llvm=${LLVM_SYS_221_PREFIX:-/usr/lib/llvm-22}
llvm_packages=(llvm-22-dev libmlir-22-dev mlir-22-tools libpolly-22-dev clang-22 lld-22)
system_packages=(libzstd-dev zlib1g-dev libxml2-dev libz3-dev libffi-dev)

say() { printf '%s\n' "$*" >&2; }
stop() { say "$@"; exit 1; }

# What comes from elsewhere than the system's packages, when these are there.
finish() {
  [ -z "$want_assemble" ] || "$(dirname "$0")/fetch_ptxas.sh" >/dev/null
  exit 0
}

want_download= want_lint= want_emulate= want_browse= want_assemble=
for argument in "$@"; do
  case $argument in
    --download) want_download=1 ;;
    --lint) want_lint=1 ;;
    --emulate) want_emulate=1 ;;
    --browse) want_browse=1 ;;
    --assemble) want_assemble=1 want_download=1 ;;
    *) stop "setup.sh: unknown argument $argument" ;;
  esac
done

# ---- Rust: never installed by us, it belongs to the user.

command -v cargo >/dev/null || stop "xfc is written in Rust, and there is no cargo on PATH.
Install Rust $rust_wanted or newer from https://rustup.rs, open a new shell, and run this command again."
rust=$(rustc --version | cut -d' ' -f2)
[ "$(printf '%s\n' "$rust_wanted" "$rust" | sort -V | head -n 1)" = "$rust_wanted" ] ||
  stop "xfc needs Rust $rust_wanted or newer; rustc is $rust. Run: rustup update stable"
if [ -n "$want_lint" ]; then
  for tool in rustfmt clippy; do
    command="cargo ${tool/rustfmt/fmt} --version"
    $command >/dev/null 2>&1 && continue
    say "Adding $tool to the Rust toolchain"
    rustup component add "$tool" >/dev/null 2>&1 || stop "\`$command\` fails. Run: rustup component add $tool"
  done
  # The check that wants it says so where it cannot be had.
  wasm=wasm32-unknown-unknown
  [ -d "$(rustc --print target-libdir --target $wasm)" ] || rustup target add $wasm >/dev/null 2>&1 || true
fi

if [ -n "$want_emulate" ]; then
  emulated=aarch64-unknown-linux-musl
  if [ ! -d "$(rustc --print target-libdir --target "$emulated")" ]; then
    say "Adding Rust's library for $emulated"
    rustup target add "$emulated" >/dev/null 2>&1 || stop "Rust's library for $emulated is missing, which tests of AArch64 need. Run: rustup target add $emulated"
  fi
fi
has_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

# ---- Elsewhere than on Debian: look at what is there, say what is missing.

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  missing=()
  command -v cc >/dev/null || missing+=("a C compiler and linker (cc)")
  case $("$llvm/bin/llvm-config" --version 2>/dev/null) in
    22.*) [ -e "$llvm/lib/libMLIRIR.a" ] || missing+=("MLIR 22 as static libraries in $llvm/lib (libMLIRIR.a and its like)") ;;
    *) missing+=("LLVM 22 and MLIR 22 with static libraries, clang 22 for its libclang, and the libraries zstd, zlib, libxml2, z3, libffi") ;;
  esac
  if [ -n "$want_download" ]; then
    python3 -m pip --version >/dev/null 2>&1 || missing+=("python3 with pip (downloads the demo's checkpoint, and ptxas for tests)")
  fi
  if [ -n "$want_emulate" ]; then
    for tool in qemu-aarch64 qemu-x86_64; do
      command -v "$tool" >/dev/null || missing+=("$tool (QEMU's user mode, for tests of other processors)")
    done
  fi
  if [ -n "$want_browse" ]; then
    has_browser >/dev/null || missing+=("Chromium, as chromium on PATH (tests open pages in it)")
  fi
  [ "${#missing[@]}" -gt 0 ] || finish
  say "This machine has no apt-get, so please install what is missing:"
  for item in "${missing[@]}"; do say "  - $item"; done
  stop "LLVM is looked for in $llvm. If it is elsewhere, set LLVM_SYS_221_PREFIX, MLIR_SYS_220_PREFIX and TABLEGEN_220_PREFIX to its prefix.
Then run this command again."
fi

# ---- Debian and its relatives.

wanted=("${system_packages[@]}")
# A prefix of one's own replaces the packages of LLVM.
[ "$llvm" != /usr/lib/llvm-22 ] || wanted=("${llvm_packages[@]}" "${wanted[@]}")
command -v cc >/dev/null || wanted+=(build-essential)
if [ -n "$want_download" ]; then
  command -v python3 >/dev/null || wanted+=(python3)
  python3 -m pip --version >/dev/null 2>&1 || wanted+=(python3-pip)
fi

[ -z "$want_emulate" ] || wanted+=(qemu-user)
if [ -n "$want_browse" ]; then
  has_browser >/dev/null || wanted+=(chromium)
fi

missing=()
for package in "${wanted[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ "${#missing[@]}" -gt 0 ] || finish

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || stop "Packages are missing, and there is no sudo. As root, run:
  apt-get update && apt-get install --no-install-recommends ${missing[*]}"
  as_root=(sudo)
fi
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get "$@"; }

# Packages that apt knows no version of.
unknown() {
  local package policy
  for package in "${missing[@]}"; do
    policy=$(LC_ALL=C apt-cache policy "$package")
    [[ $policy == *"Candidate: "[^\(]* ]] || printf '%s ' "$package"
  done
}

if [ -n "$(unknown)" ]; then
  say "Reading the package lists (apt-get update)"
  apt update -qq >&2 || stop "apt-get update failed; is the network there?"
fi
absent=$(unknown)
if [ -n "$absent" ]; then
  . /etc/os-release
  say "apt offers no version of: $absent"
  case ${VERSION_CODENAME:-} in
    bookworm)
      stop "On Debian 12 they come with the security updates (suite bookworm-security, component main), which this machine's apt does not
read: add that suite of Debian's security archive to /etc/apt/sources.list.d, and run this command again."
      ;;
    *)
      stop "LLVM's own packages for ${PRETTY_NAME:-this system} may have them, version 22 (the LLVM project's page says how to add them). Then run this command again."
      ;;
  esac
fi

# apt-get says "Need to get 223 MB of archives. After this operation, 1,341 MB of additional disk space will be used."
size=$( (LC_ALL=C apt-get install --no-install-recommends --assume-no "${missing[@]}" 2>/dev/null || true) |
  sed -nE 's/^Need to get (.*) of archives\./download \1/p; s/^After this operation, (.*) of additional .*/on disk \1/p' | paste -sd, | sed 's/,/, /')
say "Installing with apt-get: ${missing[*]}"
say "  ${size:-size unknown}"
if [ -t 2 ]; then
  apt install -y -q --no-install-recommends "${missing[@]}" >&2
else
  log=$(mktemp)
  apt install -y -qq --no-install-recommends "${missing[@]}" >"$log" 2>&1 || { tail -n 20 "$log" >&2; stop "apt-get failed; its whole output is in $log"; }
  rm -f "$log"
fi
say "Installed."
finish
