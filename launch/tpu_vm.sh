#!/usr/bin/env bash
# A Cloud TPU slice: makes it, installs the project on all its workers, runs, resumes after preemption, deletes it.
# Not yet run on a TPU by us; checked by shellcheck, dry run and a stand-in for gcloud (flags: Google Cloud SDK 528).
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: NAME=... ZONE=... [VARIABLE=...] launch/tpu_vm.sh [--dry-run] COMMAND [flags of asdjax.main ...]

  create        make the slice; with QUEUED=1 through Cloud TPU's queue, waiting until it is there
  install       copy the project to all workers and install '.[tpu]' there
  run           python -m asdjax.main --distributed FLAGS on all workers
  resume-loop   run, and again while it exits with 75 or the slice is gone, which is then made anew and installed
  delete        delete the slice, without asking
  --dry-run     print the commands only (so does DRY_RUN=1)

  NAME, ZONE    of the slice; its project is that of gcloud's settings
  TYPE          accelerator type (v5litepod-16)
  VERSION       runtime version that goes with it (v2-alpha-tpuv5-lite)
  SPOT=1        cheaper, may be preempted; with QUEUED=1 the resume-loop waits for capacity instead of failing
  MOUNT         what mounts a shared disk on /mnt/shared, done on every worker; resume-loop needs it. One of
                  sudo mount -t nfs SERVER:/SHARE /mnt/shared
                  gcsfuse --implicit-dirs --rename-dir-limit=10000 BUCKET /mnt/shared
                (gcsfuse must be installed; without the limit it cannot rename a checkpoint's folder into place)
  PYTHON        interpreter of the workers, installed where missing (python3.11)
  PAUSE         seconds between looks at the slice (60)

--workdir belongs on /mnt/shared: worker 0 alone writes it, but its own disk goes when the slice goes. All workers read
--config.data.root. Start a resume-loop in tmux on a machine with a steady connection: it ends with its terminal.
TEXT
    exit "$1"
}

step() { # runs a command, or prints it
    local word line='' quote="'" escaped="'\\''"
    [[ -n ${DRY_RUN:-} ]] || { "$@"; return; }
    for word; do
        case $word in *[!A-Za-z0-9_./:=,@%+-]*) word="$quote${word//$quote/$escaped}$quote" ;; esac
        line+=" $word"
    done
    echo "${line:1}"
}
tpus() { step gcloud compute tpus "$1" "$2" "$NAME" --zone="$ZONE" "${@:3}"; }
workers() { tpus tpu-vm ssh --worker=all --command="$1"; }
state() { tpus tpu-vm describe --format='value(state)' 2>/dev/null || true; }

create() {
    local now options=(--accelerator-type="$TYPE")
    [[ ${SPOT:-} != 1 ]] || options+=(--spot)
    [[ ${QUEUED:-} == 1 ]] || { tpus tpu-vm create "${options[@]}" --version="$VERSION"; return; }
    tpus queued-resources create "${options[@]}" --runtime-version="$VERSION" --node-id="$NAME"
    until now=$(tpus queued-resources describe --format='value(state.state)') && [[ $now == ACTIVE ]]; do
        [[ -z ${DRY_RUN:-} ]] || { echo "$now"; return; }
        case $now in FAILED | SUSPENDED) echo "error: the request for $NAME is $now" >&2; exit 1 ;; esac
        sleep "$PAUSE"
    done
}

install() {
    local root archive="${TMPDIR:-/tmp}/$NAME.tar.gz"
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    step tar -czf "$archive" --exclude=__pycache__ -C "$root" pyproject.toml README.md asdjax configs
    step gcloud compute tpus tpu-vm scp "$archive" "$NAME:asdjax.tar.gz" --zone="$ZONE" --worker=all
    # The image's own python3 may be older than 3.11, and a fresh machine may hold apt's lock for minutes.
    local apt='sudo apt-get -o DPkg::Lock::Timeout=600'
    workers "{ command -v $PYTHON || { $apt update && $apt install -y $PYTHON-venv; }; } && rm -rf ~/asdjax && \
mkdir ~/asdjax && tar -xzf asdjax.tar.gz -C ~/asdjax && cd ~/asdjax && $PYTHON -m venv .venv && \
.venv/bin/pip install '.[tpu]'"
}

run() {
    local flag command='cd ~/asdjax && exec .venv/bin/python -m asdjax.main --distributed'
    local folder="sudo mkdir -p /mnt/shared && sudo chown \$USER /mnt/shared"
    for flag; do command+=" $(printf %q "$flag")"; done
    [[ -z ${MOUNT:-} ]] || command="{ mountpoint -q /mnt/shared || { $folder && $MOUNT; }; } && $command"
    workers "$command"
}

delete() {
    if [[ ${QUEUED:-} == 1 ]]; then tpus queued-resources delete --force --quiet; else tpus tpu-vm delete --quiet; fi
}

renew() {
    delete || true # a preempted slice keeps its name taken; a vanished one has nothing to delete
    create
    install
}

resume_loop() {
    local now code
    [[ -n ${MOUNT:-} ]] || { echo 'error: resume-loop needs MOUNT: what was saved must outlive the slice' >&2; exit 2; }
    if [[ -n ${DRY_RUN:-} ]]; then
        run "$@"
        echo '# exit code 75: the same again; where the slice is gone, first:'
        state
        renew
        return
    fi
    while true; do
        while now=$(state) && [[ $now != READY ]]; do
            case $now in '' | PREEMPTED | TERMINATED) renew ;; *) echo "$NAME is $now"; sleep "$PAUSE" ;; esac
        done
        code=0
        run "$@" || code=$?
        ((code != 0)) || return 0
        echo "exit code $code" >&2
        sleep "$PAUSE" # the state lags behind a preemption
        [[ $code == 75 || $(state) != READY ]] || return "$code"
    done
}

TYPE=${TYPE:-v5litepod-16} VERSION=${VERSION:-v2-alpha-tpuv5-lite} PYTHON=${PYTHON:-python3.11} PAUSE=${PAUSE:-60}
[[ ${1:-} != --dry-run ]] || { DRY_RUN=1; shift; }
case ${1:-} in
create | install | run | delete | resume-loop) ;;
-h | --help) usage 0 ;;
*) usage 2 >&2 ;;
esac
[[ -n ${NAME:-} && -n ${ZONE:-} ]] || { echo "error: NAME and ZONE are not both set; see --help" >&2; exit 2; }
"${1/-/_}" "${@:2}"
