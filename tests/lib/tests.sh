# shellcheck shell=bash
# What tests there are, what each says of itself, and how one is run. Needs rig/lib/common.sh.

TESTS=$CHECKOUT/tests

# The names of all tests, one per line, quick ones first.
all_tests() {
    local file
    for file in "$TESTS"/build/*.sh "$TESTS"/unit/test_*.c "$TESTS"/fuzz/fuzz_*.c "$TESTS"/proofs/*.sh \
        "$TESTS"/system/*.sh; do
        [[ -e $file ]] || continue
        local name=${file##*/}
        case $file in
            */unit/*) name=${name#test_} name=unit/${name%.c} ;;
            */fuzz/*) name=${name#fuzz_} name=fuzz/${name%.c} ;;
            */proofs/*) name=proof/${name%.sh} ;;
            # Without a header it is a part of other tests.
            *) grep -q '^# checks:' "$file" || continue
                name=${file#"$TESTS"/} name=${name%.sh} ;;
        esac
        printf '%s\n' "$name"
    done
}

# match_tests PATTERN…: the names on standard input that match one of them; all without any.
match_tests() {
    local name pattern
    while IFS= read -r name; do
        [[ $# -gt 0 ]] || printf '%s\n' "$name"
        for pattern in "$@"; do
            # A pattern with glob characters stands for whole names, a kind for all of its tests.
            # shellcheck disable=SC2053 # matching a glob is the point
            if [[ $name == $pattern || ${name%%/*} == "$pattern" ]] ||
                { [[ $pattern != *[*?[]* ]] && [[ $name == *"$pattern"* ]]; }; then
                printf '%s\n' "$name"
                break
            fi
        done
    done
}

test_source() {
    case $1 in
        unit/*) printf '%s/unit/test_%s.c\n' "$TESTS" "${1#*/}" ;;
        fuzz/*) printf '%s/fuzz/fuzz_%s.c\n' "$TESTS" "${1#*/}" ;;
        proof/*) printf '%s/proofs/%s.sh\n' "$TESTS" "${1#*/}" ;;
        *) printf '%s/%s.sh\n' "$TESTS" "$1" ;;
    esac
}

# test_header NAME KEY: the value of `# KEY: value` among the first lines of a script.
test_header() {
    sed -n "1,20s/^# $2: *//p" "$(test_source "$1")" | head -n 1
}

# test_subject NAME: what it checks, in a line. Of a C file, the first sentence of its first comment
# (after the licence).
test_subject() {
    case $1 in
        unit/* | fuzz/*)
            sed -n '/SPDX/d; /^\/\*/,/\*\//p; /\*\//q' "$(test_source "$1")" | sed 's,^ */\*\** *,,; s,\*/,,; s,^ *\* *,,' |
                tr '\n' ' ' | sed 's/^ *//; s/\. .*//; s/\.\? *$//'
            ;;
        *) test_header "$1" checks ;;
    esac
}

# test_detail NAME LOG: how much was checked, if the log tells.
test_detail() {
    local number
    case $1 in
        unit/*)
            number=$(sed -n 's/^\[ *PASSED *\] \([0-9]*\) test.*/\1/p' "$2" | awk '{ n += $1 } END { print n + 0 }')
            printf '%d cases' "$number"
            ;;
        system/* | build/* | proof/*)
            number=$(grep -c '^ok ' "$2" || true)
            [[ $number -eq 0 ]] || printf '%d checks' "$number"
            ;;
    esac
}

# run_test NAME: runs it; its output and status are the test's.
run_test() {
    local name=$1 source timeout options files
    source=$(test_source "$name")
    timeout=$(test_header "$name" timeout)
    cd "$CHECKOUT"
    export VIOD_CACHE=$CACHE
    case $name in
        unit/*)
            export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
            local program
            program=$(native_build_dir gcc)/tests/unit/test_${name#*/}
            # Some once more, on a guest that grants its memory.
            if grep -qx "${name#*/}" "$TESTS/unit/with-grants.txt"; then
                timeout -k 5 "${timeout:-600}" env VIOD_FAKE_GRANTS=1 "$program" || return
            fi
            exec timeout -k 5 "${timeout:-600}" "$program"
            ;;
        fuzz/*)
            # New finds go to a copy: a test changes nothing in the checkout. What broke something stays.
            local corpus seconds=${FUZZ_SECONDS:-8}
            corpus=$(mktemp -d)
            [[ ! -d $TESTS/fuzz/corpus/${name#*/} ]] || cp -r "$TESTS/fuzz/corpus/${name#*/}/." "$corpus"
            local status=0
            (cd "$corpus" && timeout -k 5 $((seconds + 600)) "$(native_build_dir fuzz)/tests/fuzz/fuzz_${name#*/}" \
                -max_total_time="$seconds" -print_final_stats=1 "$corpus") || status=$?
            [[ $status -eq 0 ]] || printf 'its corpus, and what broke it: %s\n' "$corpus"
            [[ $status -ne 0 ]] || rm -rf "$corpus"
            return "$status"
            ;;
        build/* | proof/*)
            # The scripts' own builds have room here, apart for each checkout.
            BUILD=$(native_build_dir gcc) SCRATCH=$(native_build_dir "${name//\//-}") \
                exec timeout -k 5 "${timeout:-900}" bash "$source"
            ;;
        system/*)
            cd "$TESTS/system"
            SCRATCH=$(native_build_dir "${name//\//-}")
            export SCRATCH
            local host setting
            host=$(test_header "$name" host)
            if [[ -n $host ]]; then
                mkdir -p "$SCRATCH"
                timeout -k 5 "${timeout:-600}" "./$host" || return
            fi
            # What is quoted in a header means what it means in a shell.
            eval "options=($(test_header "$name" boot))"
            eval "files=($(test_header "$name" files))"
            for setting in $(test_header "$name" settings); do
                [[ -z ${!setting:-} ]] || options+=(--set "$setting=${!setting}")
            done
            # shellcheck disable=SC2086 # options, or none
            exec "$TESTS/rig/boot" --timeout "${timeout:-600}" ${RIG_BOOT_OPTIONS:-} "${options[@]}" "$source" "${files[@]}"
            ;;
    esac
}
