#!/bin/sh
# Builds the peers that `make bench` measures beside ours: chisel and frp, from the Go module proxy that the
# machine's go is set up for. They land in the folder given (default .bench/peers) and are no dependency of
# anything: without them the bench measures what is there.
# usage: tests/bench/peers.sh [DIRECTORY]
set -eu

CHISEL=v1.11.5
FRP=v0.70.0

command -v go >/dev/null 2>&1 || { echo "go is missing: Go 1.25 or newer" >&2; exit 1; }
out=${1:-$(dirname "$0")/../../.bench/peers}
mkdir -p "$out"
out=$(cd "$out" && pwd)

missing=

chisel() {
    echo "chisel $CHISEL"
    GOBIN="$out" CGO_ENABLED=0 go install -trimpath "github.com/jpillora/chisel@$CHISEL"
}

frp() (
    set -e
    echo "frp $FRP"
    work=$(mktemp -d)
    trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
    # the main packages are built from a copy: frp's go.mod has replace lines, which `go install` refuses
    from=$(cd "$work" && go mod download -json "github.com/fatedier/frp@$FRP" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",*$/\1/p')
    [ -n "$from" ] || { echo "frp $FRP: the module could not be downloaded" >&2; exit 1; }
    cp -R "$from" "$work/frp"
    chmod -R u+w "$work/frp"
    for program in frps frpc; do
        # noweb leaves out the dashboard, whose built assets are not in the module
        (cd "$work/frp" && CGO_ENABLED=0 go build -trimpath -tags "$program,noweb" -o "$out/$program" "./cmd/$program")
    done
)

# One that cannot be had does not keep the other from being measured; the exit status says that something is missing.
[ -x "$out/chisel" ] || chisel || missing="$missing chisel"
[ -x "$out/frps" ] && [ -x "$out/frpc" ] || frp || missing="$missing frp"
ls -l "$out"
[ -z "$missing" ] || { echo "not built:$missing" >&2; exit 1; }
