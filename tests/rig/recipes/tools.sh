# shellcheck shell=bash disable=SC2034 # lib/artifacts.sh reads what is set here
# The rig's own programs: how dom0 runs jobs in domUs, and watches their consoles.

needs=(sysroot)
inputs=(tests/rig/tools/rig-agent.c tests/rig/tools/rig-exec.c tests/rig/tools/rig-follow.c tests/rig/tools/job.h)
packages=(clang lld)

recipe() {
    local out=$1 program
    for program in rig-agent rig-exec; do
        clang --target=aarch64-linux-gnu --sysroot="$(artifact sysroot)" -fuse-ld=lld -std=gnu17 -O2 \
            -Wall -Wextra -Werror -pthread -o "$out/$program" "$RIG/tools/$program.c" -lxenstore
    done
    clang --target=aarch64-linux-gnu --sysroot="$(artifact sysroot)" -fuse-ld=lld -std=gnu17 -O2 \
        -Wall -Wextra -Werror -o "$out/rig-follow" "$RIG/tools/rig-follow.c"
}
