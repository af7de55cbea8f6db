# shellcheck shell=bash
# Packages and sources of $SUITE, whatever release this machine runs: from the mirror
# that the machine's own apt uses, with a private apt state that leaves the machine's alone.

# The mirror of the Debian archive proper (not of the security updates).
debian_mirror() {
    local mirror
    mirror=$(known_mirror)
    if [[ -z $mirror ]]; then
        # apt does not know who an archive is from before it has looked once.
        as_root apt-get -o DPkg::Lock::Timeout=600 update >&2
        mirror=$(known_mirror)
    fi
    if [[ -z $mirror ]]; then
        echo "apt on this machine has no Debian archive among its sources, so there is nowhere to get Debian from" >&2
        return 1
    fi
    printf '%s\n' "$mirror"
}

known_mirror() {
    # shellcheck disable=SC2016 # apt's own placeholders
    apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' |
        awk -F'|' '$1 == "Debian" && $2 == "Debian" && !found { print $3; found = 1 }'
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

# debian_source NAME: downloads the tarballs of source package NAME into the current folder.
# (Not by `apt-get source`, which wants the .dsc too, and mirrors may lack that.) Where the mirror lists
# them and does not have them, those in $CACHE/sources serve: NAME_*.orig.tar.* and NAME_*.debian.tar.*.
debian_source() {
    local name=$1 config uri file hash
    config=$(debian_apt_config "$PWD/apt")
    while read -r uri file _ hash; do
        [[ $file != *.dsc ]] || continue
        /usr/lib/apt/apt-helper download-file "${uri//\'/}" "$file" "$hash" || {
            rm -f ./"$name"_*.tar.*
            echo "the mirror lists ${uri//\'/} and does not have it; looking in $CACHE/sources" >&2
            cp "$CACHE/sources/$name"_*.orig.tar.* "$CACHE/sources/$name"_*.debian.tar.* . || {
                echo "either wait until the mirror has it, or put both tarballs of another version of Debian's $name there" >&2
                return 1
            }
            return 0
        }
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
