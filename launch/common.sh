# Sourced by the scripts beside it: dry runs, messages, prices, and the code that goes to other machines.
# shellcheck shell=bash

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=false

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 2
}

# The comment at the top of a script is its help.
usage() {
  sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"
}

need() {
  command -v "$1" >/dev/null 2>&1 || die "$1 is not on PATH. $2"
}

# A command as one line that a shell reads back the same.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# Runs a command and shows it first; with --dry-run it only prints it, to stdout.
run() {
  if "$dry_run"; then
    printf '%s\n' "$(quoted "$@")"
  else
    say "+ $(quoted "$@")"
    "$@"
  fi
}

# The code as it stands, changes included, with .git so that results can name the revision.
pack_source() {
  [ -d "$project/.git" ] || die "launching elsewhere sends the code of a git checkout; $project is none"
  say "+ packing $project into $1"
  "$dry_run" || (
    cd "$project" || exit
    git ls-files -z --cached --others --exclude-standard --deduplicate |
      tar --create --gzip --file="$1" --ignore-failed-read --null --files-from=- .git 2>/dev/null
  )
}

# price_of CHIP: US dollars an hour of one chip in the table, empty where it has none.
price_of() {
  awk -v chip="[$1]" '
    /^\[/ { here = ($0 == chip) }
    here && /^price/ { if (match($0, /usd_per_hour = [0-9.]+/)) print substr($0, RSTART + 15, RLENGTH - 15) }
  ' "$project/flexjax/hardware/chips.toml"
}

# cost_of COUNT CHIP: "about $9.60 an hour" at list price, or that it is not known.
cost_of() {
  local price
  price=$(price_of "$2")
  if [ -n "$price" ]; then
    awk -v n="$1" -v p="$price" -v chip="$2" \
      'BEGIN { printf "about $%.2f an hour at list price on demand (%d x %s)", n * p, n, chip }'
  else
    printf 'by the hour, at a price that chips.toml does not have (%s x %s)' "$1" "$2"
  fi
}
