
# Names of cached bundles, where a command takes one.
_musherfs_refs() {
    local -a refs
    refs=(${(f)"$(musherfs __complete refs "$PREFIX" 2>/dev/null)"})
    if (( $#refs )); then
        compadd -S '' -- $refs
    else
        _default
    fi
}
