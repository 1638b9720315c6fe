# Debian packages, and their installation. Sourced by quickstart.sh and check.sh.

KVX_BUILD_PACKAGES=(
    gcc libc6-dev meson ninja-build pkg-config
    libuv1-dev libprotobuf-c-dev protobuf-c-compiler libfabric-dev
    libinih-dev libjson-c-dev libsystemd-dev uthash-dev libssl-dev libibverbs-dev
)
# Used by sourcing scripts.
# shellcheck disable=SC2034
KVX_TEST_PACKAGES=(
    g++ libcriterion-dev clang libclang-rt-14-dev universal-ctags python3 iproute2
)

# The Python package; what comes from the package index python/check.sh installs into its own environment.
# shellcheck disable=SC2034
KVX_PYTHON_PACKAGES=(
    gcc libc6-dev pkg-config libprotobuf-c-dev protobuf-c-compiler uthash-dev python3-dev python3-venv
)

# Soft-RoCE in guests: nothing of it runs outside of QEMU but QEMU itself.
# shellcheck disable=SC2034
KVX_RDMA_PACKAGES=(
    qemu-system-x86 busybox-static iproute2 ibverbs-providers ibverbs-utils perftest python3
)

# Installs what is missing. Needs root, or sudo.
kvx_install_packages() {
    local missing=() p
    for p in "$@"; do
        dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
    done
    [ "${#missing[@]}" = 0 ] && return 0
    local root=()
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "These packages are missing: ${missing[*]}" >&2
            echo "Run as root, install sudo, or install them yourself." >&2
            return 1
        fi
        root=(sudo)
    fi
    echo "installing: ${missing[*]}"
    "${root[@]}" apt-get update -q &&
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}
