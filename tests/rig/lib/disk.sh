# shellcheck shell=bash

# make_disk TREE IMAGE SIZE LABEL: an ext4 image of TREE, made without mounting anything. Sparse.
make_disk() {
    local tree=$1 image=$2 size=$3 label=$4
    # No journal: images are never written back, every change is thrown away after the boot.
    mke2fs -q -t ext4 -O ^has_journal -E root_owner=0:0,lazy_itable_init=1 -L "$label" -m 0 \
        -d "$tree" "$image" "$size"
}
