#!/usr/bin/env bash
# A job on the NVIDIA GPUs of several hosts, one process a host, all computing on one set of devices:
#
#   launch/nvidia_hosts.sh run   --hosts=a,b,c -- --config=configs/bench.py [--config.FIELD=VALUE …]
#   launch/nvidia_hosts.sh fetch --hosts=a,b,c [--to=runs]
#
#   --hosts=A,B,…     as ssh knows them, reachable without a password; the first coordinates
#   --address=ADDR    of the first host as the others see it; its ssh name unless given
#   --port=12355      on it, open to the others
#   --dir=flexjax     where the code goes on each host
#   --name=NAME       of the run: results lie in runs/NAME of the first host
#   --dry-run         prints each command and makes none
#
# When a host fails, or on Ctrl-C, the others are ended too. Where Slurm owns the hosts, no script is needed:
#   srun --ntasks-per-node=1 env EXTRA=cuda launch/worker.sh --config=… --config.distributed=True
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

verb=${1:-}
[ $# -eq 0 ] || shift
hosts=() address="" port=12355 dir=flexjax name=nvidia to=runs
job=()
while [ $# -gt 0 ]; do
  case "$1" in
    --hosts=*) IFS=, read -r -a hosts <<<"${1#*=}" ;;
    --address=*) address=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --dir=*) dir=${1#*=} ;;
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

# -tt gives the far process a terminal, so that it ends when this side does.
ssh=(ssh -o BatchMode=yes)
started=()

stop() {
  local status=$? pid
  trap - EXIT
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait
  if [ "$status" -ne 0 ] && [ ${#started[@]} -gt 0 ]; then
    say "The run has ended on all hosts (exit status $status)."
  fi
  say "The hosts themselves stay up, and cost what their owner takes for them."
  exit "$status"
}

send_code() {
  local archive=flexjax.tar.gz host
  "$dry_run" || archive=$(mktemp --suffix=-flexjax.tar.gz)
  pack_source "$archive"
  for host in "${hosts[@]}"; do
    run scp -o BatchMode=yes -q "$archive" "$host:flexjax.tar.gz"
    run "${ssh[@]}" "$host" "mkdir -p $(quoted "$dir") && tar -xzf flexjax.tar.gz -C $(quoted "$dir")"
  done
  "$dry_run" || rm -f "$archive"
}

run_job() {
  local i command arguments
  [ ${#job[@]} -gt 0 ] || die "run needs the job after --, for example -- --config=configs/bench.py"
  send_code
  arguments=("${job[@]}" "--workdir=runs/$name" --config.distributed=True)
  "$dry_run" || trap stop EXIT
  for i in "${!hosts[@]}"; do
    command="cd $(quoted "$dir") && $(quoted env EXTRA=cuda "JAX_COORDINATOR_ADDRESS=${address:-${hosts[0]}}:$port" \
      "JAX_NUM_PROCESSES=${#hosts[@]}" "JAX_PROCESS_ID=$i" launch/worker.sh "${arguments[@]}")"
    if "$dry_run"; then
      run "${ssh[@]}" -tt "${hosts[i]}" "$command"
    else
      say "+ $(quoted "${ssh[@]}" -tt "${hosts[i]}" "$command")"
      # sed keeps the hosts' lines apart.
      "${ssh[@]}" -tt "${hosts[i]}" "$command" </dev/null > >(sed "s/^/[$i ${hosts[i]}] /") 2>&1 &
      started+=("$!")
    fi
  done
  # The first to fail ends the run: the others would wait for it for ever.
  for _ in "${started[@]}"; do wait -n; done
  started=()
}

fetch() {
  "$dry_run" || mkdir -p "$to"
  run scp -o BatchMode=yes -q -r "${hosts[0]}:$dir/runs/$name" "$to"
}

case "$verb" in
  run | fetch) ;;
  help | --help | "")
    usage
    exit
    ;;
  *) die "verbs are run and fetch; got $verb" ;;
esac
[ ${#hosts[@]} -gt 0 ] || die "$verb needs --hosts=A,B,…"
case "$verb" in
  run) run_job ;;
  fetch) fetch ;;
esac
