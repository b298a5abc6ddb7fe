#!/usr/bin/env bash
# Holds the dependencies to deny.toml: licences, sources, bans, and known vulnerabilities.
#
# Needs cargo-deny (`cargo install --locked cargo-deny`), which continuous integration (CI=true) builds for itself; without it, or without
# the database of vulnerabilities, it says what was not checked. Continuous integration fails without the tool.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${CI:-}" = true ] && ! cargo deny --version >/dev/null 2>&1; then
  cargo install --quiet --locked cargo-deny@0.20.2 >&2 || true
fi
if ! cargo deny --version >/dev/null 2>&1; then
  echo 'dependencies: NOT CHECKED against deny.toml, cargo-deny is not installed (cargo install --locked cargo-deny)' >&2
  [ "${CI:-}" != true ]
  exit
fi
cargo deny --log-level error check --hide-inclusion-graph licenses bans sources
# The database is fetched; a copy from an earlier run does.
if said=$(cargo deny --log-level error check advisories 2>&1); then
  echo "$said"
elif grep -qiE 'failed to (fetch|open|load|clone)|advisory database' <<<"$said"; then
  echo 'dependencies: known vulnerabilities NOT CHECKED, their database cannot be fetched' >&2
else
  echo "$said" >&2
  exit 1
fi
