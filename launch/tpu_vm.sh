#!/usr/bin/env bash
# Runs fer_jax on all hosts of a TPU slice, from a machine with gcloud.
#
#   launch/tpu_vm.sh --tpu=NAME --zone=ZONE [options] ACTION [-- VERB FLAGS]
#
#   install   copies this checkout to every host and installs it there
#   start     starts the verb on every host, detached from this machine
#   status    the last lines of every host's log, and whether it runs
#   stop      asks every host to save and leave; `start` goes on from there
#
#   --project=P      of gcloud; its default if unset
#   --folder=DIR     on the hosts, below the home folder (default: fer_jax)
#   --env=NAME=VALUE for the verb, such as FER_JAX_DATA=/mnt/shared/data; repeat it
#   --dry_run        prints the commands of gcloud and runs none
#
#   launch/tpu_vm.sh --tpu=v4-32 --zone=us-central2-b install
#   launch/tpu_vm.sh --tpu=v4-32 --zone=us-central2-b start -- train \
#     --config=configs/fer2013_residual_bilstm.py --workdir=/mnt/shared/runs/a
#
# The workdir lies on a disk that all hosts have mounted, which `start` checks.
# JAX finds the hosts of a slice by itself. crossval and sweep use one machine,
# and start on slices of one host alone.
set -euo pipefail

usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"
}

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

tpu='' zone='' project='' folder=fer_jax dry_run='' action=''
environment=()
while [ $# -gt 0 ]; do
  case "$1" in
    --tpu=*) tpu="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --folder=*) folder="${1#*=}" ;;
    --env=*) environment+=("${1#*=}") ;;
    --dry_run) dry_run=yes ;;
    -h | --help) usage && exit 0 ;;
    --)
      shift
      break
      ;;
    -*) fail "unknown option $1; see --help" ;;
    *)
      [ -z "$action" ] || fail "two actions, $action and $1"
      action="$1"
      ;;
  esac
  shift
done

case "$action" in
  install | start | status | stop) ;;
  '') fail 'no action; expected install, start, status or stop' ;;
  *) fail "unknown action $action; expected install, start, status or stop" ;;
esac
[ -n "$tpu" ] || fail '--tpu is missing; expected the name of a TPU VM'
[ -n "$zone" ] || fail '--zone is missing; expected one such as us-central2-b'
case "$folder" in
  '' | /* | -* | *..* | *[!A-Za-z0-9._/-]*)
    fail "--folder=$folder: expected a plain path below the home folder"
    ;;
esac
for pair in ${environment[@]+"${environment[@]}"}; do
  [[ "$pair" =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] ||
    fail "--env=$pair: expected NAME=VALUE"
done

workdir=''
if [ "$action" = start ]; then
  case "${1:-}" in
    train | crossval | sweep) ;;
    '') fail 'start needs a verb after --: train, crossval or sweep' ;;
    *) fail "$1 is not one of train, crossval, sweep" ;;
  esac
  config=''
  for argument in "$@"; do
    case "$argument" in
      --workdir=*) workdir="${argument#*=}" ;;
      --config=*) config="${argument#*=}" ;;
    esac
  done
  [ -n "$config" ] || fail '--config=FILE is missing after the verb'
  case "$workdir" in
    '') fail '--workdir=DIR is missing after the verb' ;;
    /*) ;;
    *) fail "--workdir=$workdir is relative; expected a path on a shared disk" ;;
  esac
elif [ $# -gt 0 ]; then
  fail "$action takes nothing after --"
fi

place=("$tpu" "--zone=$zone")
[ -z "$project" ] || place+=("--project=$project")

run() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# on WORKER COMMAND: a command of bash on one host, or on all.
on() {
  run gcloud compute tpus tpu-vm ssh "${place[@]}" "--worker=$1" "--command=$2"
}

if [ -z "$dry_run" ]; then
  command -v gcloud >/dev/null ||
    fail 'gcloud is not found; it comes with the Google Cloud CLI'
  state="$(gcloud compute tpus tpu-vm describe "${place[@]}" \
    '--format=value(state)')" || fail "gcloud does not know $tpu in $zone"
  [ "$state" = READY ] || fail "$tpu is $state; expected READY"
  if [ "$action" = start ] && [ "$1" != train ]; then
    hosts="$(on all 'echo one_of_the_hosts' | grep -c one_of_the_hosts)" || true
    [ "$hosts" -le 1 ] ||
      fail "$tpu has $hosts hosts; $1 uses one machine, so a slice of one host"
  fi
fi

case "$action" in
  install)
    scratch="$(mktemp -d)"
    trap 'rm -rf "$scratch"' EXIT
    # What git tracks, as it is in the checkout: changes come along.
    archive="$scratch/fer_jax_checkout.tar.gz"
    top="$(dirname "$0")/.."
    git -C "$top" ls-files -z |
      tar -C "$top" --null --files-from=- -czf "$archive"
    run gcloud compute tpus tpu-vm scp "$archive" "$tpu:" "${place[@]:1}" \
      --worker=all
    on all "set -e; mkdir -p $folder
tar -xzf fer_jax_checkout.tar.gz -C $folder && cd $folder
[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip install --quiet -e '.[tpu]'
.venv/bin/python -c 'import jax; print(jax.__version__)'"
    ;;
  start)
    quoted="$(printf %q "$workdir")"
    # One host writes, every host must read it.
    token=".hosts_$$_$RANDOM"
    on 0 "mkdir -p $quoted && touch $quoted/$token"
    on all "[ -e $quoted/$token ] || { echo \"\$(hostname) does not see $token \
in $quoted: it is not on a shared disk\" >&2; exit 1; }" || {
      on 0 "rm $quoted/$token"
      fail "$workdir is not shared by all hosts; nothing was started"
    }
    on 0 "rm $quoted/$token"
    assignments=''
    for pair in ${environment[@]+"${environment[@]}"}; do
      assignments+="$(printf '%q ' "$pair")"
    done
    line="$(printf '%q ' "$@")"
    on all "cd $folder || exit 1
if [ -e run.pid ] && kill -0 \"\$(cat run.pid)\" 2>/dev/null; then
echo \"\$(hostname): a run is under way\" >&2; exit 1; fi
setsid nohup env $assignments.venv/bin/python -m fer_jax $line\
>run.log 2>&1 </dev/null & echo \$! >run.pid"
    if [ -z "$dry_run" ]; then
      echo "started on all hosts of $tpu; $0 ... status tells how it goes"
    fi
    ;;
  status)
    on all "cd $folder || exit 1
if [ -e run.pid ] && kill -0 \"\$(cat run.pid)\" 2>/dev/null
then echo \"\$(hostname): running\"; else echo \"\$(hostname): not running\"; fi
tail -n 5 run.log"
    ;;
  stop)
    on all "cd $folder && kill -TERM \"\$(cat run.pid)\""
    ;;
esac
