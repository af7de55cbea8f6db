# shellcheck shell=bash disable=SC2034 # lib/artifacts.sh reads what is set here
# A FLASK policy: Xen's own with the module of configs/flask, built as that says.

needs=()
inputs=(configs/flask/domd.te)
packages=(make m4 checkpolicy python3 xz-utils patch gcc libc6-dev)

recipe() {
    local out=$1
    stage "downloading"
    debian_source xen
    debian_unpack xen
    stage "building"
    cp "$CHECKOUT/configs/flask/domd.te" xen/tools/flask/policy/modules/
    echo 'domd = on' >>xen/tools/flask/policy/modules/modules.conf
    # Built where it belongs, but without Xen's configure, which wants all that its tools need.
    mkdir build
    make -C xen/tools/flask/policy -f Makefile.common XEN_ROOT="$PWD/xen" FLASK_BUILD_DIR="$PWD/build"
    cp build/xenpolicy-* "$out/policy"
}
