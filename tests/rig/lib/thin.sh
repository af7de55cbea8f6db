# shellcheck shell=bash
# Makes Debian trees thin enough for slow (emulated) machines.

# thin_tree DIR: what no test reads; less to write, less to load.
thin_tree() {
    local dir=$1
    rm -rf "$dir"/usr/share/{doc,man,info,locale,i18n,lintian,bug,zsh,bash-completion} \
        "$dir"/var/cache/apt "$dir"/var/lib/apt "$dir"/var/log/apt "$dir"/usr/lib/aarch64-linux-gnu/perl-base \
        "$dir"/usr/lib/aarch64-linux-gnu/gconv "$dir"/usr/share/perl "$dir"/usr/share/perl5
}

# thin_fio TREE: Debian's fio links with the libraries of half a dozen network file systems, which
# costs 30 MB and half a second at each start under emulation. Puts empty libraries with the same
# symbols in their place: fio starts at once, and only its engines for those do not work.
thin_fio() {
    local tree=$1 libs=$1/usr/lib/aarch64-linux-gnu library short prefix work
    work=$(mktemp -d)
    readelf --dyn-syms -W "$tree/usr/bin/fio" | awk '$7 == "UND" { print $8 }' >"$work/symbols"
    for library in $(needed_libraries "$tree/usr/bin/fio"); do
        case $library in
            librbd.* | librados.* | libgfapi.* | libnbd.* | libnfs.* | librdmacm.* | libibverbs.* | libpmem.*) ;;
            *) continue ;;
        esac
        # A symbol belongs to this library if its version does, or, without one, by its prefix.
        short=${library%%.so*}
        prefix=${short#lib}_
        local versions version
        versions=$(readelf -V -W "$tree/usr/bin/fio" |
            awk -v file="$library" '/File:/ { mine = ($0 ~ "File: " file) } mine && /Name:/ {
                for (i = 1; i <= NF; i++) if ($i == "Name:") print $(i + 1) }')
        : >"$work/stub.c"
        : >"$work/stub.map"
        for version in $versions; do
            sed -n "s/@$version\$//p" "$work/symbols" >"$work/names"
            printf '%s { %s };\n' "$version" "$(sed 's/$/;/' "$work/names")" >>"$work/stub.map"
            sed 's/.*/void &(void) { __builtin_trap(); }/' "$work/names" >>"$work/stub.c"
        done
        sed -n "/@/d; s/^$prefix.*/void &(void) { __builtin_trap(); }/p" "$work/symbols" >>"$work/stub.c"
        local script=()
        [[ ! -s $work/stub.map ]] || script=("-Wl,--version-script=$work/stub.map")
        rm -f "$libs/$short".*
        clang --target=aarch64-linux-gnu -w -fPIC -shared -nostdlib -fuse-ld=lld -Wl,-soname,"$library" \
            "${script[@]}" -o "$libs/$library" "$work/stub.c"
    done
    rm -rf "$work" "$libs/ceph"
}

needed_libraries() {
    # Not everything among the programs is an ELF file: readelf's status says nothing.
    { readelf -d "$@" 2>/dev/null || true; } | sed -n 's/.*(NEEDED).*\[\(.*\)\]$/\1/p' | sort -u
}

# drop_unused_libraries TREE: leaves only the libraries that some program in TREE needs.
drop_unused_libraries() {
    local tree libs library todo
    tree=$(realpath "$1")
    libs=$tree/usr/lib/aarch64-linux-gnu
    local -A wanted=()
    todo=$(needed_libraries "$tree"/usr/bin/* "$tree"/usr/sbin/*)
    # What is opened by name at run time, and the loader itself.
    todo+=$'\nlibnss_files.so.2\nlibgcc_s.so.1\nld-linux-aarch64.so.1'
    while [[ -n $todo ]]; do
        local next=()
        for library in $todo; do
            [[ -z ${wanted[$library]:-} ]] || continue
            wanted[$library]=yes
            [[ ! -e $libs/$library ]] || next+=("$libs/$library")
        done
        todo=''
        [[ ${#next[@]} -eq 0 ]] || todo=$(needed_libraries "${next[@]}")
    done
    local keep=()
    for library in "${!wanted[@]}"; do
        [[ ! -e $libs/$library ]] || keep+=("$(realpath "$libs/$library")")
    done
    local file
    for file in "$libs"/*; do
        library=${file##*/}
        if [[ -L $file ]]; then
            [[ -n ${wanted[$library]:-} ]] || rm "$file"
        elif [[ -d $file || " ${keep[*]} " != *" $file "* ]]; then
            rm -rf "$file"
        fi
    done
}
