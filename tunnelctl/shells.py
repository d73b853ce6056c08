"""The shells' own parts of the completion scripts; `tunnelctl.completion` fills in what stands between at-signs."""

__all__ = ["BASH", "BASH_LIVE", "FISH", "FISH_LIVE", "ZSH"]

BASH_LIVE = r"""
_@PROGRAM@_live() {
    local -a at
    local i
    for ((i = @FIRST@; i < @LAST@; i++)); do
        case ${@WORDS@[i]} in
            --socket | --instance) at=("${@WORDS@[i]}" "${@WORDS@[i + 1]}") ;;
        esac
    done
    tunnelctl "${at[@]}" "$1" --json 2>/dev/null </dev/null |
        sed -n "s/^ *\"$2\": \"\([A-Za-z0-9._-]*\)\",\{0,1\}\$/\1/p"
}
"""
"""Lists live names, in bash and in zsh: ``_tunnelctl_live VERB KEY``."""

BASH = r"""# bash completion of @PROGRAM@: source it, or put it into /usr/share/bash-completion/completions/@PROGRAM@
@LIVE@
_@PROGRAM@() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} verb="" words="" only="" count=0 i
    COMPREPLY=()
    case $before in
@VALUES@
    esac
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            @VALUED@) ((i++)) ;;
            -*) ;;
            *)
                case "${verb:+$verb }${COMP_WORDS[i]}" in
                    @PATHS@) verb="${verb:+$verb }${COMP_WORDS[i]}" ;;
                    *) ((count++)) ;;
                esac ;;
        esac
    done
    if [[ $only ]]; then
        :
    elif [[ $current == -* ]]; then
        case $verb in
@OPTIONS@
        esac
    else
        case "$verb:$count" in
@WORDS@
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -F _@PROGRAM@ @PROGRAM@
"""

ZSH = r"""#compdef @PROGRAM@
# zsh completion of @PROGRAM@: put it as _@PROGRAM@ into a directory of $fpath
@LIVE@
_@PROGRAM@() {
    local verb="" count=0 i
    local -a rows
    case ${words[CURRENT - 1]} in
@VALUES@
    esac
    for ((i = 2; i < CURRENT; i++)); do
        case ${words[i]} in
            @VALUED@) ((i++)) ;;
            -*) ;;
            *)
                case "${verb:+$verb }${words[i]}" in
                    @PATHS@) verb="${verb:+$verb }${words[i]}" ;;
                    *) ((count++)) ;;
                esac ;;
        esac
    done
    if [[ ${words[CURRENT]} == -* ]]; then
        case $verb in
@OPTIONS@
        esac
        _describe -o option rows
        return
    fi
    case "$verb:$count" in
@WORDS@
    esac
    (($#rows)) && _describe command rows
}
if [ "$funcstack[1]" = "_@PROGRAM@" ]; then _@PROGRAM@ "$@"; else compdef _@PROGRAM@ @PROGRAM@; fi
"""

FISH_LIVE = r"""
function __tunnelctl_live
    set -l at
    set -l words (commandline -opc)
    for i in (seq (count $words))
        if contains -- $words[$i] --socket --instance
            set at $words[$i] $words[(math $i + 1)]
        end
    end
    tunnelctl $at $argv[1] --json 2>/dev/null </dev/null \
        | string replace -rf '^ *"'$argv[2]'": "([A-Za-z0-9._-]*)",?$' '$1'
end
"""

FISH = r"""# fish completion of @PROGRAM@: put it into ~/.config/fish/completions/@PROGRAM@.fish
@LIVE@
function __@PROGRAM@_at -a wanted
    set -l words (commandline -opc)
    set -l verb
    set -l skip 0
    for word in $words[2..]
        if test $skip = 1
            set skip 0
        else if contains -- $word @VALUED@
            set skip 1
        else if not string match -q -- '-*' $word
            set -l longer (string join ' ' $verb $word)
            if contains -- $longer @PATHS@
                set verb $longer
            end
        end
    end
    test "$verb" = "$wanted"
end
complete -c @PROGRAM@ -f
@LINES@
"""
