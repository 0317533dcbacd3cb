#!/usr/bin/env bash
# A Cloud TPU, one host or a slice of many: create it, run a job on all its hosts, fetch the results, delete it.
#
#   launch/tpu_vm.sh create --name=NAME --zone=ZONE --type=v5litepod-8 [--spot] [--queued] [--version=RUNTIME]
#   launch/tpu_vm.sh run    --name=NAME --zone=ZONE -- --config=configs/bench.py [--config.FIELD=VALUE …]
#   launch/tpu_vm.sh fetch  --name=NAME --zone=ZONE [--to=runs]
#   launch/tpu_vm.sh status --name=NAME --zone=ZONE
#   launch/tpu_vm.sh delete --name=NAME --zone=ZONE
#
#   --dry-run             prints each gcloud command and makes none
#   --spot                cheaper, and taken away at any time
#   --queued              asks for it as a queued resource and waits until it is granted
#   --delete-on-failure   deletes it when create or run fails; otherwise it stays, and costs, until you delete it
#   --project=PROJECT     of Google Cloud; else gcloud's own
#
# Each verb can be repeated: create leaves an existing one alone, run sends the code anew, delete of nothing is well.
# Every host runs launch/worker.sh, which ends in python -m flexjax.launch; results lie in runs/NAME of host 0.
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

verb=${1:-}
[ $# -eq 0 ] || shift
name="" zone="" type="" version="" to="runs" spot=false queued=false delete_on_failure=false
gcloud=(gcloud)
job=()
while [ $# -gt 0 ]; do
  case "$1" in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --to=*) to=${1#*=} ;;
    --project=*) gcloud+=("--project=${1#*=}") ;;
    --spot) spot=true ;;
    --queued) queued=true ;;
    --delete-on-failure) delete_on_failure=true ;;
    --dry-run) dry_run=true ;;
    --)
      shift
      job=("$@")
      break
      ;;
    *) die "unknown argument $1; $0 help shows what there is (the job's own come after --)" ;;
  esac
  shift
done

# tpu NOUN VERB …: gcloud compute tpus NOUN VERB … in the zone.
tpu() { run "${gcloud[@]}" compute tpus "$@" "--zone=$zone"; }

# look NOUN FORMAT: a field of the resource called NAME, empty when there is none. A describe would fail alike for
# what is absent and for a lost login, and the second must not pass for "nothing to pay".
look() {
  "$dry_run" && return
  "${gcloud[@]}" compute tpus "$1" list "--zone=$zone" "--filter=name~(^|/)$name\$" "--format=value($2)" || {
    say "error: gcloud did not say whether $name exists; it may, and cost money. Once gcloud works: $(ending)"
    exit 1
  }
}

# What a type of accelerator is made of: "COUNT CHIP". v4 and v5p types count cores, two a chip.
chips_of() {
  case "$1" in
    v5litepod-*) echo "${1##*-} v5e" ;;
    v6e-*) echo "${1##*-} v6e" ;;
    v5p-* | v4-*) echo "$((${1##*-} / 2)) ${1%%-*}" ;;
    tpu7x-*) echo "${1##*-} 7x" ;;
    *) echo "1 $1" ;;
  esac
}

runtime_of() {
  case "$1" in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    *) die "no runtime is known for $1: give --version=RUNTIME (gcloud compute tpus versions list --zone=$zone)" ;;
  esac
}

ending() { quoted launch/tpu_vm.sh delete "--name=$name" "--zone=$zone" "${gcloud[@]:1}"; }

# What there is, and what it costs.
report() {
  local queue count chip
  type=$(look tpu-vm acceleratorType) || exit 1
  queue=$(look queued-resources state.state) || exit 1
  if [ -z "$type$queue" ]; then
    say "There is no TPU called $name in $zone, and none is queued: nothing to pay."
  elif [ -z "$type" ]; then
    say "WILL COST MONEY: the request for $name is $queue; once granted it costs until it is deleted. End it:"
    say "  $(ending)"
  else
    read -r count chip <<<"$(chips_of "$type")"
    say "COSTS MONEY: $name ($type) costs $(cost_of "$count" "$chip") until it is deleted, idle or not. End it:"
    say "  $(ending)"
  fi
}

# Whatever happens after this is set, the last words are about money.
finish() {
  local status=$?
  trap - EXIT
  if [ "$status" -ne 0 ] && "$delete_on_failure"; then
    say "$verb failed; deleting $name, as --delete-on-failure asks."
    delete
  else
    "$dry_run" || report
  fi
  exit "$status"
}

create() {
  local options=("--accelerator-type=$type") state
  [ -n "$type" ] || die "create needs --type, for example --type=v5litepod-8"
  version=${version:-$(runtime_of "$type")} || exit
  if "$spot"; then options+=(--spot); fi
  trap finish EXIT
  if "$queued"; then
    state=$(look queued-resources state.state)
    if [ -z "$state" ]; then
      tpu queued-resources create "$name" "--node-id=$name" "${options[@]}" "--runtime-version=$version"
    else
      say "$name is queued already."
    fi
    "$dry_run" || wait_until_granted
  else
    state=$(look tpu-vm state)
    if [ -z "$state" ]; then
      tpu tpu-vm create "$name" "${options[@]}" "--version=$version"
    else
      say "$name exists already."
    fi
  fi
}

wait_until_granted() {
  local state
  while true; do
    state=$(look queued-resources state.state)
    case "$state" in
      ACTIVE) return ;;
      FAILED | SUSPENDED | "")
        say "error: the request for $name is ${state:-gone}."
        exit 1
        ;;
    esac
    say "$name is $state; looking again in ${POLL_SECONDS:-30} s (Ctrl-C ends the waiting, not the request)."
    sleep "${POLL_SECONDS:-30}"
  done
}

# Refuses unless NAME is there.
must_exist() {
  "$dry_run" && return
  local found
  found=$(look tpu-vm state)
  [ -n "$found" ] || die "there is no TPU called $name in $zone; create it first"
}

run_job() {
  local archive=flexjax.tar.gz command
  [ ${#job[@]} -gt 0 ] || die "run needs the job after --, for example -- --config=configs/bench.py"
  must_exist
  trap finish EXIT
  "$dry_run" || archive=$(mktemp --suffix=-flexjax.tar.gz)
  pack_source "$archive"
  tpu tpu-vm scp "$archive" "$name:flexjax.tar.gz" --worker=all
  "$dry_run" || rm -f "$archive"
  tpu tpu-vm ssh "$name" --worker=all "--command=mkdir -p flexjax && tar -xzf flexjax.tar.gz -C flexjax"
  command="cd flexjax && EXTRA=tpu launch/worker.sh $(quoted "${job[@]}" "--workdir=runs/$name" --config.distributed=True)"
  tpu tpu-vm ssh "$name" --worker=all "--command=$command"
  say "Done; fetch the results with: $(quoted launch/tpu_vm.sh fetch "--name=$name" "--zone=$zone" "${gcloud[@]:1}")"
}

fetch() {
  must_exist
  trap finish EXIT
  "$dry_run" || mkdir -p "$to"
  tpu tpu-vm scp --recurse "$name:flexjax/runs/$name" "$to" --worker=0
}

status() {
  if "$dry_run"; then
    tpu tpu-vm list
    tpu queued-resources list
  else
    report
  fi
}

delete() {
  local queue node
  queue=$(look queued-resources state.state) || exit 1
  # The request first: forced, it takes its TPU with it.
  if "$dry_run" || [ -n "$queue" ]; then tpu queued-resources delete "$name" --force --quiet || true; fi
  node=$(look tpu-vm state) || exit 1
  if "$dry_run" || [ -n "$node" ]; then tpu tpu-vm delete "$name" --quiet || true; fi
  # Not what gcloud answered counts, but what is left.
  queue=$(look queued-resources state.state) || exit 1
  node=$(look tpu-vm state) || exit 1
  "$dry_run" && return
  if [ -n "$queue$node" ]; then
    say "error: $name is still there (${queue:-$node}) and may still cost money. Try again: $(ending)"
    exit 1
  fi
  say "Nothing called $name is left in $zone: nothing to pay."
}

case "$verb" in
  create | run | fetch | status | delete) ;;
  help | --help | "")
    usage
    exit
    ;;
  *) die "verbs are create, run, fetch, status and delete; got $verb" ;;
esac
[ -n "$name" ] || die "$verb needs --name"
[ -n "$zone" ] || die "$verb needs --zone, for example --zone=us-west4-a"
"$dry_run" || need gcloud "It comes with the Google Cloud CLI: https://cloud.google.com/sdk/docs/install"
case "$verb" in
  run) run_job ;;
  *) "$verb" ;;
esac
