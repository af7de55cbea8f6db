# shellcheck shell=bash
# Kconfig, as Xen and Linux have it.

# check_config CONFIG FRAGMENT…: Kconfig drops what it does not know or cannot have, silently. We do not.
check_config() {
    local config missing
    config=$(realpath "$1")
    shift
    # A disabled option is `# … is not set` in a configuration, or not there at all.
    missing=$(cd "$CHECKOUT" && sed -n '/^CONFIG_.*=/{/=n$/d;p}' "$@" | sort -u |
        comm -23 - <(sort -u "$config"))
    if [[ -n $missing ]]; then
        printf 'not in the configuration that came out:\n%s\n' "$missing"
        return 1
    fi
}
