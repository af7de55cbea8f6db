# shellcheck shell=bash
# Packages and sources of $SUITE, whatever release this machine runs: from the mirror
# that the machine's own apt uses, with a private apt state that leaves the machine's alone.

# The mirror of the Debian archive proper (not of the security updates).
debian_mirror() {
    local mirror
    # $(…) are apt's own placeholders.
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' |
        awk -F'|' '$1 == "Debian" && $2 == "Debian" { print $3; exit }')
    if [[ -z $mirror ]]; then
        note "apt on this machine knows no Debian archive: add one to its sources, run apt-get update"
        return 1
    fi
    printf '%s\n' "$mirror"
}

debian_keyring() {
    local ring=/usr/share/keyrings/debian-archive-keyring.gpg
    [[ -r $ring ]] || { note "$ring is missing (package debian-archive-keyring)"; return 1; }
    printf '%s\n' "$ring"
}

# debian_apt_config DIR: makes DIR an apt state for $SUITE, prints the path of its configuration.
debian_apt_config() {
    local dir=$1 mirror ring
    mirror=$(debian_mirror)
    ring=$(debian_keyring)
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    printf '%s [signed-by=%s] %s %s main\n' deb "$ring" "$mirror" "$SUITE" \
        deb-src "$ring" "$mirror" "$SUITE" >"$dir/sources.list"
    cat >"$dir/apt.conf" <<EOF
Dir::Etc::SourceList "$dir/sources.list";
Dir::Etc::SourceParts "-";
Dir::State::lists "$dir/lists";
Dir::Cache "$dir/cache";
APT::Sandbox::User "root";
EOF
    APT_CONFIG=$dir/apt.conf apt-get update >&2
    printf '%s\n' "$dir/apt.conf"
}

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

# debian_source NAME: downloads the tarballs of source package NAME into the current folder.
# (Not by `apt-get source`, which wants the .dsc too, and mirrors may lack that.)
debian_source() {
    local name=$1 config uri file hash
    config=$(debian_apt_config "$PWD/apt")
    while read -r uri file _ hash; do
        [[ $file != *.dsc ]] || continue
        /usr/lib/apt/apt-helper download-file "${uri//\'/}" "$file" "$hash"
    done < <(APT_CONFIG=$config apt-get source --only-source --download-only --print-uris "$name" | grep "^'")
}

# debian_unpack DIR: unpacks what debian_source downloaded, and applies Debian's patches.
debian_unpack() {
    local dir=$1 patch
    mkdir -p "$dir"
    tar -C "$dir" --strip-components=1 -xf ./*.orig.tar.*
    tar -C "$dir" -xf ./*.debian.tar.*
    while read -r patch _; do
        [[ -z $patch || $patch == \#* ]] || patch -d "$dir" -p1 -s -i "debian/patches/$patch"
    done <"$dir/debian/patches/series"
}

# check_config CONFIG FRAGMENT…: Kconfig drops what it does not know or cannot have, silently. We do not.
check_config() {
    local config=$1 missing
    shift
    # A disabled option is `# … is not set` in a configuration, or not there at all.
    missing=$(cd "$CHECKOUT" && sed -n '/^CONFIG_.*=/{/=n$/d;p}' "$@" | sort -u |
        comm -23 - <(cd - >/dev/null && sort -u "$config"))
    if [[ -n $missing ]]; then
        printf 'not in the configuration that came out:\n%s\n' "$missing"
        return 1
    fi
}
