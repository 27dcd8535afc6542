#!/usr/bin/env bash
# The peers on a GPU, in one go: every adapter against the reference, plug-ins, one backend under two names, attention alone,
# the software stack's matrix, a layer of every backend, the pinned-SDPA anomaly of the pinned backends. Result documents, tables and
# pictures go to the folder given.
#
#   bash bench/gpu_peers.sh FOLDER PYTHON                 # the defaults: bench/results, python3
#   PEERS_STEPS="compile checks aa" bash bench/gpu_peers.sh FOLDER
#   PEERS_STEPS="attention" bash bench/gpu_peers.sh FOLDER
#   PEERS_STEPS="stack layer flex pinned-sdpa" bash bench/gpu_peers.sh FOLDER
#
# Libraries that are not there are listed as unsupported, with the reason; docs/peers.md says how each is installed, and
# `python -m bench.doctor` which of them this machine has. A step that is cut off at its limit leaves the documents of what
# it had finished. Killed and run again, the steps of several processes go on with those that are missing (the others are
# in FOLDER/.kept: delete it to measure anew).
#
# Steps, with the seconds that each may take, and those that it took on an H200 with 16 cores (2026-11-24, before
# flashinfer-tc; attention with it, on an H100; flex and the second half of pinned-sdpa on 2026-11-28; predicted for layer):
#   compile    240  128  FlashInfer, flex and FlashAttention-2's PTX, compiled side by side, for all later processes
#   checks     150   59  the gate at groups of 4, 7 and 8, beside the tests of CUDA plug-ins (pytest and CuPy)
#   aa         100   43  native under two names, three sessions
#   attention  560  470  the default of bench.attention: three sessions of 155 s, batch 1 and 4
#   stack      300  199  every cell; the compiled ones ahead side by side
#   layer      150   70  a layer of every backend
#   flex       120   52  flex, at four contexts, one session: it compiles at every shape
#   pinned-sdpa     120   41  the pinned backends and the default, and again
#               60   34  with cuDNN out of the default's choice, as it was in the study
#
# Exit status: 0 where every step succeeded; the failed ones are named at the end. bench/doctor's lines come first.
export COLUMNS=${COLUMNS:-150}
. "$(dirname "$0")/gpu_steps.sh" || exit 2
steps=${PEERS_STEPS:-compile checks aa attention stack layer flex pinned-sdpa}

gate=(-m bench.attention --gate --l2=warm)
heads=(--model=qwen2.5-7b,llama-3.1-8b --heads=64/8)  # groups of 7, 4 and 8
contexts=(--ctx=1000,4096 --batch=1,4)
flex_contexts=1024,4096,16384,65536
kept=$out/.kept

compile_all() {  # what fails here is told by the steps that need it
    local each model batch ctx
    for each in --model=qwen2.5-7b --model=llama-3.1-8b --heads=64/8; do
        for batch in 1 4; do
            "$python" "${gate[@]}" --sessions=0 --backend=flashinfer "$each" --ctx=1000 --batch=$batch >/dev/null 2>&1 &
        done
        "$python" "${gate[@]}" --sessions=0 --backend=flex "$each" "${contexts[@]}" >/dev/null 2>&1 &
    done
    for ctx in ${flex_contexts//,/ }; do
        "$python" "${gate[@]}" --sessions=0 --backend=flex --model=qwen2.5-7b,llama-3.1-8b --ctx=$ctx --batch=1 \
            >/dev/null 2>&1 &
    done
    "$python" "${gate[@]}" --sessions=0 --backend=fa2 "${heads[@]}" --ctx=1000,65536 --batch=1,4 >/dev/null 2>&1 &
    wait
}

check_all() {  # neither looks at a time
    local log plugins status
    trap : TERM  # at the limit the gate ends by itself, and what there is gets shown
    log=$(mktemp)
    "$python" -m pytest -q -p no:cacheprovider tests/gpu/test_plugins_cuda.py >"$log" 2>&1 &
    plugins=$!
    "$python" "${gate[@]}" --sessions=1 --backend=all "${heads[@]}" "${contexts[@]}" \
        --json="$out/$gpu-attention-gate.json.gz" --md="$out/$gpu-attention-gate.md"
    status=$?
    wait "$plugins" || status=1
    tail -30 "$log"
    rm "$log"
    return "$status"
}

ask_gpu
"$python" -m bench.doctor
export -f compile_all check_all
export python out gpu flex_contexts
declare_arrays=$(declare -p gate heads contexts)
step compile 240 bash -c "$declare_arrays; compile_all"
step checks 150 bash -c "$declare_arrays; check_all"
step aa 100 "$python" -m bench.attention --sessions=3 --backend=native --aa=native --ctx=1024,8192,65536 --batch=1 \
    --no-trace-kernels --keep="$kept/aa" --json="$out/$gpu-attention-aa.json" --md="$out/$gpu-attention-aa.md"
step attention 560 "$python" -m bench.attention --sessions=3 --keep="$kept/attention" --json="$out/$gpu-attention.json.gz" \
    --md="$out/$gpu-attention.md" --plot="$out/$gpu-attention.png"
step stack 300 "$python" -m bench.stack --compile-jobs=6 --keep="$kept/stack" --json="$out/$gpu-stack.json" \
    --md="$out/$gpu-stack.md" --plot="$out/$gpu-stack.png"
step layer 150 "$python" -m bench.layer --model=llama-3.1-8b \
    --backend=native,sdpa,sdpa-flash,sdpa-cudnn,fa2,fa3,flashinfer,flashinfer-tc,xqa,flex,compile,compile-graphs \
    --json="$out/$gpu-peers-layer-llama-3.1-8b.json"
step flex 120 "$python" -m bench.attention --sessions=1 --backend=native,sdpa,flex --ctx=$flex_contexts --batch=1 \
    --json="$out/$gpu-attention-flex.json" --md="$out/$gpu-attention-flex.md"
pinned=(-m bench.attention --sessions=3 --context-manager=outside,inside --model=llama-3.1-8b --ctx=2048 --batch=1
    --l2=warm)
step pinned-sdpa 120 "$python" "${pinned[@]}" --keep="$kept/pinned-sdpa" \
    --backend=native,sdpa,sdpa-math,sdpa-flash,sdpa-cudnn,fa2,fa3,flashinfer,flashinfer-tc,xqa \
    --json="$out/$gpu-pinned-sdpa.json" --md="$out/$gpu-pinned-sdpa.md"
step "pinned-sdpa without cuDNN" 60 "$python" "${pinned[@]}" --keep="$kept/pinned-sdpa-without-cudnn" \
    --backend=sdpa,sdpa-math,sdpa-flash --sdpa-from=flash,mem_efficient,math \
    --json="$out/$gpu-pinned-sdpa-without-cudnn.json" --md="$out/$gpu-pinned-sdpa-without-cudnn.md"
name_failures
