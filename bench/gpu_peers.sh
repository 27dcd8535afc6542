#!/usr/bin/env bash
# The peers on a GPU, in one go: attention alone, the riddle of the pinned backends, the software stack's matrix, and a
# layer of every backend. Result documents, tables and pictures go to the folder given.
#
#   bash bench/gpu_peers.sh FOLDER PYTHON                 # the defaults: bench/results, python3
#   PEERS_STEPS="attention stack" bash bench/gpu_peers.sh FOLDER
#
# Libraries that are not there are listed as unsupported, with the reason; docs/peers.md says how each is installed, and
# `python -m bench.doctor` which of them this machine has. FlashInfer compiles a kernel at its first use: the first step
# (compile) does that once, so that no session waits for it.
#
# Steps, with the minutes that each may take: compile 5, attention 10, riddle 3, stack 8, layer 4. Exit status: 0 where
# every step succeeded; the failed ones are named at the end.
set -u
out=${1:-bench/results}
python=${2:-python3}
steps=${PEERS_STEPS:-compile attention riddle stack layer}
mkdir -p "$out"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} COLUMNS=${COLUMNS:-150}
failed=()

step() {  # name, seconds, command
    local name=$1 limit=$2 begin=$SECONDS
    shift 2
    [[ " $steps " == *" $name "* ]] || return 0
    echo "--- $name: $*"
    timeout "$limit" "$@" || failed+=("$name")
    echo "--- $name: $((SECONDS - begin)) s"
}

gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace("nvidia ", "").split()[0])') || exit 1
"$python" -m bench.doctor
step compile 300 "$python" -m bench.attention --sessions=0 --backend=flashinfer --ctx=1024 --calls=2 --warmup=0 \
    --no-trace-kernels
step attention 600 "$python" -m bench.attention --sessions=3 --json="$out/$gpu-attention.json" \
    --md="$out/$gpu-attention.md" --plot="$out/$gpu-attention.png"
step riddle 180 "$python" -m bench.attention --sessions=3 --backend=native,sdpa,sdpa-math,sdpa-flash,sdpa-cudnn,fa2,fa3,flashinfer \
    --context-manager=outside,inside --model=llama-3.1-8b --ctx=2048 --batch=1 --l2=warm \
    --json="$out/$gpu-riddle.json" --md="$out/$gpu-riddle.md"
step stack 480 "$python" -m bench.stack --json="$out/$gpu-stack.json" --md="$out/$gpu-stack.md"
step layer 240 "$python" -m bench.layer --model=llama-3.1-8b \
    --backend=native,sdpa,sdpa-flash,sdpa-cudnn,fa2,fa3,flashinfer,compile \
    --json="$out/$gpu-peers-layer-llama-3.1-8b.json"
if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
