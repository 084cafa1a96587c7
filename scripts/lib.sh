#!/usr/bin/env bash
# The other scripts source this file. It checks that this machine can build Headwater and, where a script asks for it, run
# containers. It installs what is missing with apt where nobody has to be asked, and otherwise prints the command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/headwater"
# One target directory outside the clone and one profile for everything: RocksDB and DataFusion are compiled once, and a
# second clone finds them compiled.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
fail() { printf '%s\n' "$*" >&2; exit 1; }

# RocksDB and librdkafka are compiled from source, which takes these packages.
needed_packages=(g++ make cmake pkg-config libclang-dev libssl-dev libcurl4-openssl-dev zlib1g-dev)

has_libclang() {
  [ -n "${LIBCLANG_PATH:-}" ] && return 0
  ldconfig -p 2>/dev/null | grep -q libclang && return 0
  compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null && return 0
  compgen -G '/usr/lib64/libclang*.so*' >/dev/null && return 0
  [ "$(uname)" = Darwin ] && { [ -e /Library/Developer/CommandLineTools/usr/lib/libclang.dylib ] ||
    [ -d /opt/homebrew/opt/llvm/lib ] || [ -d /usr/local/opt/llvm/lib ]; }
}

# Leaves in `as_root` the prefix of a command that needs root; fails where a person would be asked for a password.
as_root=()
may_install() {
  command -v apt-get >/dev/null || return 1
  [ "$(id -u)" -eq 0 ] && return 0
  command -v sudo >/dev/null && sudo -n true 2>/dev/null || return 1
  as_root=(sudo)
}

# install_packages NAME...: installs with apt. Call `may_install` first.
install_packages() {
  say "installing $* with apt"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

prepare() {
  if ! command -v cargo >/dev/null; then
    fail "Headwater needs Rust 1.95 or newer; install it from https://rustup.rs and run this again."
  fi
  local missing=()
  command -v c++ >/dev/null || missing+=("a C++ compiler")
  command -v make >/dev/null || missing+=("make")
  command -v cmake >/dev/null || missing+=("CMake")
  has_libclang || missing+=("libclang")
  if command -v pkg-config >/dev/null; then
    local library
    for library in openssl libcurl zlib; do
      pkg-config --exists "$library" || missing+=("$library's headers")
    done
  else
    missing+=("pkg-config")
  fi
  [ ${#missing[@]} -eq 0 ] && return 0

  say "missing: ${missing[*]}"
  if may_install; then
    install_packages "${needed_packages[@]}"
  elif command -v apt-get >/dev/null; then
    fail "Install them and run this again:  sudo apt-get install -y ${needed_packages[*]}"
  elif command -v dnf >/dev/null; then
    fail "Install them and run this again:  sudo dnf install gcc-c++ make cmake pkgconf-pkg-config clang-devel openssl-devel libcurl-devel zlib-devel"
  elif [ "$(uname)" = Darwin ]; then
    fail "Install them and run this again:  xcode-select --install; brew install cmake pkgconf openssl@3   (and: brew install llvm, if libclang is still missing)"
  else
    fail "Install them with your system's package manager, and run this again."
  fi
}

# Builds every binary and leaves the path of the `headwater` command in $HEADWATER. It builds the whole workspace, never one
# package: then each dependency has the features that the tests build it with, and none is compiled twice.
build_headwater() {
  if [ -n "${HEADWATER:-}" ]; then return 0; fi
  if [ -d "$CARGO_TARGET_DIR/debug/deps" ]; then
    say "building"
  else
    say "building; the first build takes about 20 minutes on 2 cores, most of it for RocksDB, librdkafka and DataFusion"
  fi
  cargo build --locked --workspace --bins --quiet
  HEADWATER="$CARGO_TARGET_DIR/debug/headwater"
}

# run_tests ARGUMENT...: runs cargo test on the whole workspace, also after a test has failed. Then it lists what failed and
# what was skipped, and ends with a line of totals. The whole workspace is selected even for one test, so that shared
# dependencies keep the features that they were built with.
run_tests() {
  local output code=0
  output=$(mktemp "${TMPDIR:-/tmp}/headwater-tests.XXXXXX")
  cargo test --locked --workspace --no-fail-fast "$@" 2>&1 | tee "$output" || code=$?
  awk -f scripts/test-summary.awk "$output" || [ "$code" -ne 0 ] || code=1
  rm -f "$output"
  return "$code"
}

# Succeeds if a Docker engine answers. The client answers without an engine, so the question is for the server's version.
engine_answers() {
  command -v docker >/dev/null || return 1
  [ -n "$(timeout 20 docker version --format '{{.Server.Version}}' 2>/dev/null)" ]
}

# Starts a Docker engine unless one answers, and installs Debian's where nobody has to be asked. On failure `engine_trouble`
# says why.
engine_trouble=''
start_engine() {
  engine_answers && return 0
  if ! command -v dockerd >/dev/null; then
    if ! may_install; then
      engine_trouble="install Docker and start it"
      return 1
    fi
    # cgroupfs-mount mounts the kernel's control groups where no init system has done it.
    install_packages docker.io cgroupfs-mount iptables
    engine_answers && return 0
  fi
  if [ "$(id -u)" -ne 0 ]; then
    engine_trouble="an engine is installed, but does not answer $(id -un): start it, or join the group docker"
    return 1
  fi
  local log="$cache/dockerd.log"
  mkdir -p "$cache"
  say "starting Docker's engine; its log is $log"
  if [ -d /run/systemd/system ]; then
    systemctl start docker </dev/null >"$log" 2>&1 || true
  else
    mountpoint -q /sys/fs/cgroup || ! command -v cgroupfs-mount >/dev/null || cgroupfs-mount
    # The engine outlives this script. It gets its own session and none of our descriptors, so that a reader of this
    # script's output sees the output end.
    setsid dockerd </dev/null >"$log" 2>&1 &
    disown
  fi
  local _
  for _ in $(seq 60); do
    engine_answers && return 0
    sleep 0.5
  done
  tail -5 "$log" >&2
  engine_trouble="the engine does not start; $log says why"
  return 1
}

# Makes the images for the tests with containers, if an engine answers; else says once that these tests are skipped.
# With HEADWATER_REQUIRE_DOCKER=1 a missing engine is a failure, here and in every test.
prepare_containers() {
  if [ "$1" = start ] || [ "${HEADWATER_REQUIRE_DOCKER:-0}" = 1 ]; then
    start_engine || true
  fi
  if engine_answers; then
    scripts/images
  elif [ "${HEADWATER_REQUIRE_DOCKER:-0}" = 1 ]; then
    fail "no Docker engine: ${engine_trouble:-none answers}"
  else
    say "no Docker engine: the tests with containers will be skipped${engine_trouble:+; $engine_trouble}"
  fi
}
