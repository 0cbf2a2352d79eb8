#!/usr/bin/env bash
# N processes of asdjax.main on this machine, joined over loopback: one per GPU, or on CPU to try a multi-process run.
# Run by us on CPU; not yet on several GPUs: how it shares them out is checked with a stand-in for nvidia-smi.
set -u

usage() {
    cat <<'TEXT'
usage: [VARIABLE=...] launch/local_processes.sh N [flags of asdjax.main ...]
       launch/local_processes.sh 2 --config=configs/mfn.py --workdir=runs/two --config.train.steps=20

Process 0 prints here, process I > 0 into LOGS/process_I.log. When one fails the others are ended, and its exit code is
this command's. Ctrl-C and SIGTERM ask all to save and exit with 75, after which the same command resumes; a second one
kills them.

  PYTHON                 interpreter (python)
  LOGS                   folder of the other processes' output (a new temporary folder)
  GRACE                  seconds that the others have to end after the first failure (60)
  DRY_RUN=1              print the commands only
  CUDA_VISIBLE_DEVICES   GPUs to share out, one per process (all); JAX_PLATFORMS=cpu takes none
  JAX_NUM_CPU_DEVICES    devices of each process on CPU (1)
TEXT
    exit "$1"
}

case ${1:-} in -h | --help) usage 0 ;; esac
[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || usage 2 >&2
n=$1
shift

gpus=()
if [[ ${JAX_PLATFORMS:-} == cpu ]]; then
    :
elif [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
elif command -v nvidia-smi >/dev/null; then
    mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader)
fi
if ((${#gpus[@]} > 0 && ${#gpus[@]} < n)); then
    echo "error: $n processes need $n GPUs, there are ${#gpus[@]}; JAX_PLATFORMS=cpu runs them on CPU" >&2
    exit 2
fi

port=$((20000 + RANDOM % 10000)) # below the ports that the system gives to outgoing connections
while (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done

pids=()
send() { ((${#pids[@]} == 0)) || kill -s "$1" "${pids[@]}" 2>/dev/null; }

# Children of a script ignore Ctrl-C, hence TERM for it as well: all save the same step.
next=TERM
trap 'send "$next"; next=KILL' INT TERM HUP

[[ -n ${DRY_RUN:-} ]] || mkdir -p "${LOGS:=$(mktemp -d)}" || exit
for ((i = 0; i < n; i++)); do
    command=("${PYTHON:-python}" -m asdjax.main "$@" "--coordinator=127.0.0.1:$port" "--processes=$n" "--process=$i")
    ((${#gpus[@]} == 0)) || command=(env "CUDA_VISIBLE_DEVICES=${gpus[i]}" "${command[@]}")
    if [[ -n ${DRY_RUN:-} ]]; then
        printf '%q ' "${command[@]}" && echo
    elif ((i == 0)); then
        "${command[@]}" &
        pids[i]=$!
    else
        "${command[@]}" >"$LOGS/process_$i.log" 2>&1 &
        pids[i]=$!
    fi
done
[[ -n ${DRY_RUN:-} ]] || ((n == 1)) || echo "output of the other processes: $LOGS/process_*.log" >&2

code=0
while ((${#pids[@]} > 0)); do
    for i in "${!pids[@]}"; do
        kill -0 "${pids[i]}" 2>/dev/null && continue
        wait "${pids[i]}"
        ended=$?
        unset "pids[i]"
        ((ended != 0 && code == 0)) || continue
        code=$ended
        deadline=$((SECONDS + ${GRACE:-60}))
        echo "process $i ended with exit code $code" >&2
        ((i == 0)) || tail -n 20 "$LOGS/process_$i.log" >&2
        ((code == 75)) || send TERM # on 75 the others save the same step and end by themselves
    done
    if ((code != 0 && SECONDS > deadline)); then send KILL; fi
    sleep 0.1
done
exit "$code"
