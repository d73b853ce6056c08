"""Completion scripts. Live names come from the agent: ``tunnelctl … --json``, quietly; no agent, no names.

The JSON is indented, one key a line, so that sed reads it where there is no jq. Only plain characters pass: bash
expands the words that it is given, and an id that says ``$(…)`` must not run.
"""

from __future__ import annotations

from tunnelctl.cli import VERBS

__all__ = ["SCRIPTS"]

_GLOBAL = ("--socket", "--instance", "--json", "--version", "--help")
_STREAMS = ("--tunnel", "--kind")
_OWN: dict[str, tuple[str, ...]] = {
    "streams": _STREAMS,
    "cancel": (*_STREAMS, "--path", "--older-than", "--idle", "--all", "--yes"),
}
_KINDS = "sse http websocket"
_SHELLS = "bash zsh fish"

_BASH = r"""# bash completion of tunnelctl: source it, or put it into /usr/share/bash-completion/completions/tunnelctl
_tunnelctl_live() {
    local -a at=()
    local i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            --socket | --instance) at=("${COMP_WORDS[i]}" "${COMP_WORDS[i + 1]}") ;;
        esac
    done
    tunnelctl "${at[@]}" "$1" --json 2>/dev/null </dev/null |
        sed -n "s/^ *\"$2\": \"\([A-Za-z0-9._-]*\)\",\{0,1\}\$/\1/p"
}

_tunnelctl() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} verb="" words="" i
    COMPREPLY=()
    case $before in
        --socket) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$current")); return ;;
        --tunnel) COMPREPLY=($(compgen -W "$(_tunnelctl_live status name)" -- "$current")); return ;;
        --kind) COMPREPLY=($(compgen -W "@KINDS@" -- "$current")); return ;;
        --instance | --path | --older-than | --idle) return ;;
    esac
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            --socket | --instance | --tunnel | --kind | --path | --older-than | --idle) ((i++)) ;;
            -*) ;;
            *) verb=${COMP_WORDS[i]}; break ;;
        esac
    done
    case $verb in
        "") words="@VERBS@" ;;
@CASES@
    esac
    if [[ $current == -* ]]; then
        case $verb in
@OPTIONS@
            *) words="@GLOBAL@" ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -F _tunnelctl tunnelctl
"""

_ZSH = r"""#compdef tunnelctl
# zsh completion of tunnelctl: put it as _tunnelctl into a directory of $fpath
_tunnelctl_live() {
    local -a at
    local i
    for ((i = 2; i < CURRENT; i++)); do
        case ${words[i]} in
            --socket | --instance) at=("${words[i]}" "${words[i + 1]}") ;;
        esac
    done
    tunnelctl "${at[@]}" "$1" --json 2>/dev/null </dev/null |
        sed -n "s/^ *\"$2\": \"\([A-Za-z0-9._-]*\)\",\{0,1\}\$/\1/p"
}

_tunnelctl() {
    local verb="" i
    case ${words[CURRENT - 1]} in
        --socket) _files; return ;;
        --tunnel) compadd -- ${(f)"$(_tunnelctl_live status name)"}; return ;;
        --kind) compadd -- @KINDS@; return ;;
        --instance | --path | --older-than | --idle) return ;;
    esac
    for ((i = 2; i < CURRENT; i++)); do
        case ${words[i]} in
            --socket | --instance | --tunnel | --kind | --path | --older-than | --idle) ((i++)) ;;
            -*) ;;
            *) verb=${words[i]}; break ;;
        esac
    done
    if [[ ${words[CURRENT]} == -* ]]; then
        case $verb in
@ZSH_OPTIONS@
            *) compadd -- @GLOBAL@ ;;
        esac
        return
    fi
    case $verb in
        "") local -a verbs; verbs=(
@ZSH_VERBS@
            ); _describe verb verbs ;;
        cancel) compadd -- ${(f)"$(_tunnelctl_live streams request_id)"} ;;
        reconnect) compadd -- ${(f)"$(_tunnelctl_live status name)"} ;;
        completion) compadd -- @SHELLS@ ;;
    esac
}
if [ "$funcstack[1]" = "_tunnelctl" ]; then _tunnelctl "$@"; else compdef _tunnelctl tunnelctl; fi
"""

_FISH = r"""# fish completion of tunnelctl: put it into ~/.config/fish/completions/tunnelctl.fish
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
complete -c tunnelctl -f
complete -c tunnelctl -l socket -r -F -d "the agent's control socket"
complete -c tunnelctl -l instance -x -d "an instance of the service"
complete -c tunnelctl -l json -d "the API's own shapes"
complete -c tunnelctl -l version -d "print the version"
complete -c tunnelctl -s h -l help -d "show help"
@FISH_VERBS@
complete -c tunnelctl -n "__fish_seen_subcommand_from streams cancel" -l tunnel -x \
    -a "(__tunnelctl_live status name)" -d "of this tunnel only"
complete -c tunnelctl -n "__fish_seen_subcommand_from streams cancel" -l kind -x -a "@KINDS@" -d "of this kind only"
complete -c tunnelctl -n "__fish_seen_subcommand_from cancel" -l path -x -d "whose path fits"
complete -c tunnelctl -n "__fish_seen_subcommand_from cancel" -l older-than -x -d "begun so long ago"
complete -c tunnelctl -n "__fish_seen_subcommand_from cancel" -l idle -x -d "quiet for so long"
complete -c tunnelctl -n "__fish_seen_subcommand_from cancel" -l all -d "every stream"
complete -c tunnelctl -n "__fish_seen_subcommand_from cancel" -l yes -s y -d "do not ask"
complete -c tunnelctl -n "__fish_seen_subcommand_from cancel" -a "(__tunnelctl_live streams request_id)"
complete -c tunnelctl -n "__fish_seen_subcommand_from reconnect" -a "(__tunnelctl_live status name)"
complete -c tunnelctl -n "__fish_seen_subcommand_from completion" -a "@SHELLS@"
"""


def _quoted(text: str) -> str:
    return text.replace("'", "'\\''")


def _filled(script: str) -> str:
    shared = " ".join(_GLOBAL)
    cases = [
        '        cancel) words="$(_tunnelctl_live streams request_id)" ;;',
        '        reconnect) words="$(_tunnelctl_live status name)" ;;',
        f'        completion) words="{_SHELLS}" ;;',
    ]
    options = [f'            {verb}) words="{" ".join(own)} {shared}" ;;' for verb, own in _OWN.items()]
    zsh_options = [f"            {verb}) compadd -- {' '.join(own)} {shared} ;;" for verb, own in _OWN.items()]
    zsh_verbs = [f"                '{name}:{_quoted(verb.summary)}'" for name, verb in VERBS.items()]
    fish_verbs = [
        f"complete -c tunnelctl -n __fish_use_subcommand -a {name} -d '{_quoted(verb.summary)}'"
        for name, verb in VERBS.items()
    ]
    for mark, text in {
        "@VERBS@": " ".join(VERBS),
        "@KINDS@": _KINDS,
        "@SHELLS@": _SHELLS,
        "@GLOBAL@": shared,
        "@CASES@": "\n".join(cases),
        "@OPTIONS@": "\n".join(options),
        "@ZSH_OPTIONS@": "\n".join(zsh_options),
        "@ZSH_VERBS@": "\n".join(zsh_verbs),
        "@FISH_VERBS@": "\n".join(fish_verbs),
    }.items():
        script = script.replace(mark, text)
    return script


SCRIPTS: dict[str, str] = {"bash": _filled(_BASH), "zsh": _filled(_ZSH), "fish": _filled(_FISH)}
