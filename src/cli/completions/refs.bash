# Names of cached bundles, where a command takes one.
_musherfs_with_refs() {
    local typed word i command=
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $word != -* ]]; then
            command=$word
            break
        fi
    done
    # The whole word: bash itself would break it at the @.
    typed=${COMP_LINE:0:COMP_POINT}
    typed=${typed##*[[:space:]]}
    case $command in
        @COMMANDS@)
            if [[ $typed != [-./~]* ]]; then
                COMPREPLY=()
                while IFS= read -r word; do
                    [[ $COMP_WORDBREAKS != *@* ]] || word=${word#"${typed%"${typed##*@}"}"}
                    COMPREPLY+=("$word")
                done < <(musherfs __complete refs "$typed" 2>/dev/null)
                if ((${#COMPREPLY[@]} > 0)); then
                    compopt -o nospace 2>/dev/null
                    return 0
                fi
            fi
            ;;
    esac
    _musherfs "$@"
}
complete -F _musherfs_with_refs -o bashdefault -o default musherfs
