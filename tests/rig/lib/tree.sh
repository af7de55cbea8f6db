# shellcheck shell=bash
# Root trees of Debian packages. Needs lib/debian.sh.

# debian_tree DIR PACKAGE…: unpacks PACKAGEs and all that they depend on for arm64, without
# running a single maintainer script: nothing needs to be emulated.
debian_tree() {
    local dir=$1 packages mirror ring options
    shift
    packages=$(IFS=, && echo "$*")
    mirror=$(debian_mirror)
    ring=$(debian_keyring)
    # A proxy or a time-out that the machine's apt needs, this apt needs too.
    options=$(mktemp)
    apt-config dump | grep -E '^Acquire::(http|https|ftp|Retries|Check|Max)' >"$options" || true
    mmdebstrap --architectures=arm64 --variant=extract --include="$packages" \
        --aptopt="$options" "$SUITE" "$dir" "deb [signed-by=$ring] $mirror $SUITE main"
    rm -f "$options"
    # Of maintainer scripts, these few results are missed.
    local name
    for name in bin sbin lib; do
        mkdir -p "$dir/usr/$name"
        [[ -e $dir/$name ]] || ln -s "usr/$name" "$dir/$name"
    done
    find "$dir/dev" -mindepth 1 -delete
    for name in passwd group; do
        [[ ! -e $dir/usr/share/base-passwd/$name.master ]] ||
            cp "$dir/usr/share/base-passwd/$name.master" "$dir/etc/$name"
    done
}
