# What the person reads. All of it goes to stderr: stdout belongs to answers (a token, export lines, a log).
# shellcheck shell=bash disable=SC2034,SC2154 # names are shared between the parts of deploy/dev

if [[ -t 2 && -z ${NO_COLOR:-} ]]; then
  bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' yellow=$'\e[33m' plain=$'\e[0m'
else
  bold='' dim='' red='' green='' yellow='' plain=''
fi

say() { printf '%s\n' "$*" >&2; }
step() { printf '%s▸%s %s\n' "$green" "$plain" "$*" >&2; }
warn() { printf '%s▸ %s%s\n' "$yellow" "$*" "$plain" >&2; }

# die MESSAGE [WHAT TO DO NEXT]...
die() {
  printf '%sdeploy/dev: %s%s\n' "$red" "$1" "$plain" >&2
  shift
  [[ $# -eq 0 ]] || printf '  %s\n' "$@" >&2
  exit 1
}

# last_lines FILE [COUNT]: the end of a log, set apart from what the launcher says itself. Of a service's backtrace, where
# one is asked for (RUST_BACKTRACE), the frames are left out: the reason stands above them.
last_lines() {
  [[ -s $1 ]] || { say "  ${dim}(nothing in $1)${plain}"; return 0; }
  say "  ${dim}the end of $1:${plain}"
  awk '/^[Ss]tack backtrace:/ { frames = 1; next } frames && /^ +([0-9]+: |at )/ { next } { frames = 0; print }' "$1" |
    tail -n "${2:-15}" | sed 's/^/    /' >&2
}
