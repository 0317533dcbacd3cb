#!/usr/bin/env bash
# A job on a TPU slice of a GKE cluster (with JobSet installed): render its manifest, run it, follow it, delete it.
#
#   launch/gke.sh render --name=NAME --image=IMAGE --chip=v5e --topology=4x4 [--spot] [--bucket=BUCKET] -- JOB…
#   launch/gke.sh run    (the same)     kubectl apply of that manifest
#   launch/gke.sh logs   --name=NAME    follows what host 0 prints
#   launch/gke.sh fetch  --name=NAME --bucket=BUCKET [--to=runs]
#   launch/gke.sh status --name=NAME
#   launch/gke.sh delete --name=NAME
#
#   JOB…                   what follows python -m flexjax.launch: --config=configs/bench.py [--config.FIELD=VALUE …]
#   --image=IMAGE          made by: docker build -f launch/Dockerfile --build-arg EXTRA=tpu -t IMAGE . && docker push IMAGE
#   --bucket=BUCKET        results go to gs://BUCKET/NAME; without one they go with the pods
#   --chips-per-host=4     of the node pool's machine type
#   --deadline-hours=4     after which the job is ended, whatever it is doing
#   --namespace=NAMESPACE  of the cluster; else kubectl's own
#   --dry-run              prints each kubectl and gcloud command and makes none
#
# kubectl must point at the cluster. Every verb can be repeated.
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

verb=${1:-}
[ $# -eq 0 ] || shift
name="" image="" chip="" topology="" bucket="" to=runs
spot=false chips_per_host=4 deadline_hours=4 keep_seconds=3600
kubectl=(kubectl)
job=()
while [ $# -gt 0 ]; do
  case "$1" in
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --chip=*) chip=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --to=*) to=${1#*=} ;;
    --chips-per-host=*) chips_per_host=${1#*=} ;;
    --deadline-hours=*) deadline_hours=${1#*=} ;;
    --namespace=*) kubectl+=("--namespace=${1#*=}") ;;
    --spot) spot=true ;;
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

ending() { quoted launch/gke.sh delete "--name=$name" "${kubectl[@]:1}"; }

accelerator_of() {
  case "$1" in
    v4) echo tpu-v4-podslice ;;
    v5e) echo tpu-v5-lite-podslice ;;
    v5p) echo tpu-v5p-slice ;;
    v6e) echo tpu-v6e-slice ;;
    7x) echo tpu7x ;;
    *) die "--chip is v4, v5e, v5p, v6e or 7x; got '$1'" ;;
  esac
}

chips_in() {
  [[ "$1" =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || die "--topology is like 4x4 or 2x2x2; got '$1'"
  echo $((${1//x/*}))
}

# A YAML list of strings; what YAML would read otherwise (no, 1e3, a: b) stays a string.
yaml_list() {
  local item list=""
  for item in "$@"; do
    item=${item//\\/\\\\}
    list+="\"${item//\"/\\\"}\", "
  done
  printf '[%s]' "${list%, }"
}

render() {
  local chips hosts text volume='emptyDir: {}' arguments
  [ -n "$image" ] || die "$verb needs --image"
  [ ${#job[@]} -gt 0 ] || die "$verb needs the job after --, for example -- --config=configs/bench.py"
  chips=$(chips_in "$topology") || exit
  if ((chips % chips_per_host)); then
    ((chips < chips_per_host)) || die "$chips chips do not make whole hosts of $chips_per_host: set --chips-per-host"
    chips_per_host=$chips
  fi
  hosts=$((chips / chips_per_host))
  if [ -n "$bucket" ]; then
    volume="csi: {driver: gcsfuse.csi.storage.gke.io, volumeAttributes: {bucketName: $(yaml_list "$bucket" | tr -d '[]')}}"
  else
    say "No --bucket: results go with the pods, $((keep_seconds / 60)) minutes after the end."
  fi
  arguments=("${job[@]}" "--workdir=runs/$name")
  if ((hosts > 1)); then arguments+=(--config.distributed=True); fi
  text=$(<"$project/launch/gke_jobset.yaml.in")
  text=${text//@NAME@/"$name"}
  text=${text//@KEEP_SECONDS@/"$keep_seconds"}
  text=${text//@HOSTS@/"$hosts"}
  text=${text//@DEADLINE_SECONDS@/"$((deadline_hours * 3600))"}
  text=${text//@USES_BUCKET@/"$([ -n "$bucket" ] && echo true || echo false)"}
  text=${text//@ACCELERATOR@/"$(accelerator_of "$chip")"}
  text=${text//@TOPOLOGY@/"$topology"}
  if "$spot"; then text=${text//@SPOT@/true}; else text=$(grep -v '@SPOT@' <<<"$text"); fi
  text=${text//@IMAGE@/"$image"}
  text=${text//@CHIPS_PER_HOST@/"$chips_per_host"}
  text=${text//@VOLUME@/"$volume"}
  text=${text//@ARGS@/"$(yaml_list "${arguments[@]}")"}
  printf '%s\n' "$text"
}

run_job() {
  local manifest chips
  manifest=$(render) || exit
  chips=$(chips_in "$topology")
  if "$dry_run"; then
    printf '%s <<MANIFEST\n%s\nMANIFEST\n' "$(quoted "${kubectl[@]}" apply --filename=-)" "$manifest"
    return
  fi
  say "+ $(quoted "${kubectl[@]}" apply --filename=-)"
  "${kubectl[@]}" apply --filename=- <<<"$manifest"
  say "COSTS MONEY: a slice of $chips x $chip costs $(cost_of "$chips" "$chip") while its nodes are up, which a node pool"
  say "without autoscaling always is. The job ends after $deadline_hours h at the latest. To end it:"
  say "  $(ending)"
}

status() { run "${kubectl[@]}" get jobset,pods --selector="jobset.sigs.k8s.io/jobset-name=$name"; }

logs() {
  run "${kubectl[@]}" logs --follow --container=flexjax \
    --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
}

fetch() {
  [ -n "$bucket" ] || die "fetch needs --bucket, the one that the job was run with"
  "$dry_run" || need gcloud "It comes with the Google Cloud CLI: https://cloud.google.com/sdk/docs/install"
  "$dry_run" || mkdir -p "$to"
  run gcloud storage cp --recursive "gs://$bucket/$name" "$to"
}

delete() {
  run "${kubectl[@]}" delete jobset "$name" --ignore-not-found
  say "Its nodes cost money for as long as their pool keeps them: gcloud container node-pools list --cluster=…"
}

case "$verb" in
  render | run | logs | fetch | status | delete) ;;
  help | --help | "")
    usage
    exit
    ;;
  *) die "verbs are render, run, logs, fetch, status and delete; got $verb" ;;
esac
[[ "$name" =~ ^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$ ]] || die "--name is lower-case letters, digits and dashes; got '$name'"
if [ "$verb" != render ] && ! "$dry_run"; then
  need kubectl "See https://kubernetes.io/docs/tasks/tools"
fi
case "$verb" in
  run) run_job ;;
  *) "$verb" ;;
esac
