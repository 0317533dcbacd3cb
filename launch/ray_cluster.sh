#!/usr/bin/env bash
# A Ray cluster over several hosts, and a sweep of configs on it:
#
#   launch/ray_cluster.sh start  --hosts=a,b,c [--extra=cuda]
#   launch/ray_cluster.sh run    --hosts=a,b,c -- --config=configs/sweep.py [--config.FIELD=VALUE …]
#   launch/ray_cluster.sh fetch  --hosts=a,b,c [--to=runs]
#   launch/ray_cluster.sh status --hosts=a,b,c
#   launch/ray_cluster.sh stop   --hosts=a,b,c
#
#   --hosts=A,B,…     as ssh knows them, reachable without a password; the first leads; localhost is this machine
#   --address=ADDR    of the first host as the others see it; its ssh name unless given
#   --port=6379       on it, open to the others
#   --dir=flexjax     where the code goes on each host (localhost uses this checkout)
#   --extra=EXTRA     tpu or cuda, where the hosts have such chips
#   --name=NAME       of the run: results lie in runs/NAME of the first host; the same name resumes
#   --dry-run         prints each command and makes none
#
# Every verb can be repeated: start leaves hosts alone that have joined, run skips the points that are finished.
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

verb=${1:-}
[ $# -eq 0 ] || shift
hosts=() address="" port=6379 dir=flexjax extra="" name=sweep to=runs
job=()
while [ $# -gt 0 ]; do
  case "$1" in
    --hosts=*) IFS=, read -r -a hosts <<<"${1#*=}" ;;
    --address=*) address=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --dir=*) dir=${1#*=} ;;
    --extra=*) extra=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --to=*) to=${1#*=} ;;
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

# on HOST COMMAND: runs a shell line in the project's folder there.
on() {
  if [ "$1" = localhost ]; then
    run bash -c "cd $(quoted "$project") && $2"
  else
    run ssh -o BatchMode=yes "$1" "cd $(quoted "$dir") && $2"
  fi
}

send_code() {
  local archive=flexjax.tar.gz host packed=false
  for host in "${hosts[@]}"; do
    [ "$host" != localhost ] || continue
    if ! "$packed"; then
      "$dry_run" || archive=$(mktemp --suffix=-flexjax.tar.gz)
      pack_source "$archive"
      packed=true
    fi
    run scp -o BatchMode=yes -q "$archive" "$host:flexjax.tar.gz"
    run ssh -o BatchMode=yes "$host" "mkdir -p $(quoted "$dir") && tar -xzf flexjax.tar.gz -C $(quoted "$dir")"
  done
  if "$packed" && ! "$dry_run"; then rm -f "$archive"; fi
}

start() {
  local host token join
  send_code
  for host in "${hosts[@]}"; do
    # --help starts nothing but sets up; the sweep needs Ray, its points what their chips need.
    on "$host" "EXTRA=search launch/worker.sh --help >/dev/null"
    [ -z "$extra" ] || on "$host" "EXTRA=$(quoted "$extra") launch/worker.sh --help >/dev/null"
  done
  # Ray lets in who knows the token; it goes from host to host and is never shown.
  if "$dry_run"; then
    on "${hosts[0]}" ".venv/bin/ray get-auth-token --generate"
  else
    token=$(on "${hosts[0]}" ".venv/bin/ray get-auth-token --generate" 2>/dev/null | tail -n 1)
    [ -n "$token" ] || die "Ray on ${hosts[0]} made no token; is .venv/bin/ray there?"
  fi
  for host in "${hosts[@]}"; do
    join="--address=$(quoted "${address:-${hosts[0]}}:$port")"
    [ "$host" != "${hosts[0]}" ] || join="--head --port=$port --include-dashboard=false"
    [ "$host" = "${hosts[0]}" ] || on "$host" "umask 077 && mkdir -p ~/.ray && cat >~/.ray/auth_token" <<<"${token:-}"
    on "$host" "pgrep -x raylet >/dev/null || .venv/bin/ray start $join --disable-usage-stats >/dev/null"
  done
  remind
}

run_job() {
  [ ${#job[@]} -gt 0 ] || die "run needs the job after --, for example -- --config=configs/sweep.py"
  "$dry_run" || trap remind EXIT
  on "${hosts[0]}" ".venv/bin/python -m flexjax.launch $(quoted "${job[@]}" --config.executor.kind=ray --config.executor.ray_address=auto \
    "--workdir=runs/$name")"
}

fetch() {
  [ "${hosts[0]}" != localhost ] || die "nothing to fetch: the results lie in runs/$name of this checkout"
  "$dry_run" || mkdir -p "$to"
  run scp -o BatchMode=yes -q -r "${hosts[0]}:$dir/runs/$name" "$to"
}

status() { on "${hosts[0]}" ".venv/bin/ray status"; }

stop() {
  local host failed=()
  for host in "${hosts[@]}"; do
    on "$host" ".venv/bin/ray stop" || failed+=("$host")
  done
  [ ${#failed[@]} -eq 0 ] || die "Ray may still run on ${failed[*]}"
  say "Ray has ended on ${hosts[*]}. The hosts themselves stay up, and cost what their owner takes for them."
}

remind() {
  say "RUNNING: Ray holds ${#hosts[@]} host(s) until you end it:"
  say "  $(quoted launch/ray_cluster.sh stop "--hosts=$(IFS=,; printf '%s' "${hosts[*]}")" "--dir=$dir")"
}

case "$verb" in
  start | run | fetch | status | stop) ;;
  help | --help | "")
    usage
    exit
    ;;
  *) die "verbs are start, run, fetch, status and stop; got $verb" ;;
esac
[ ${#hosts[@]} -gt 0 ] || die "$verb needs --hosts=A,B,…"
if [ "${hosts[0]}" = localhost ] && [ ${#hosts[@]} -gt 1 ] && [ -z "$address" ]; then
  die "the other hosts cannot find this machine as localhost: give --address=ADDR"
fi
case "$verb" in
  run) run_job ;;
  *) "$verb" ;;
esac
