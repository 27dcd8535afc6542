#!/usr/bin/env bash
# The figures of the README and of the first table of docs/results.md, measured anew: the layers of three models, a whole
# step, attention, the GEMV shapes. Run it from a clean commit: the documents carry the commit that the build holds.
#
#   bash bench/gpu_headline.sh FOLDER PYTHON             # the defaults: bench/results, python3
#   BEFORE=../older bash bench/gpu_headline.sh FOLDER    # and against another checkout that is built, on the same card
#
# With BEFORE, layers and attention of both checkouts take turns, ROUNDS times (5), into FOLDER/before and FOLDER/after;
# bench.compare says whether anything changed, of every model a line an arm.
#
# MODES are those of attention (eager,graph): graph alone has the tables' figures, eager the other clocks and the kernels.
# Of attention's time some 11 s a head shape are XQA's compiler: HEADLINE_STEPS=compile does that before, for both at
# once, and needs the GPU for a moment only.
#
# On an H200: layers 19 s each, step 38 s, gemv 20 s; a turn 25 s; compile 26 s, attention 219 s, MODES=graph 146 s (with
# other work on its CPUs). Predicted: tune 80 s.
#
# Exit status: 0 where every step succeeded; the failed ones are named at the end.
. "$(dirname "$0")/gpu_steps.sh" || exit 2
steps=${HEADLINE_STEPS:-layer step attention gemv tune before}
before=${BEFORE:-}
rounds=${ROUNDS:-5}

turn() {  # the checkout, the folder of its documents, the turn's number
    local model
    mkdir -p "$2"
    for model in qwen2.5-7b llama-3.1-8b; do
        (cd "$1" && PYTHONPATH=$PWD "$python" -m bench.layer --model=$model --backend=native --fusion=block \
            --mode=native,graph,graph-pdl --json="$2/layer-$model-$3.json") >/dev/null || return 1
    done
    (cd "$1" && PYTHONPATH=$PWD "$python" -m bench.op --op=gqa_decode --ctx=2048,16384 --mode=graph \
        --backend=native --json="$2/gqa_decode-$3.json") >/dev/null || return 1
}

compile_xqa() {  # one small cell of each head shape, side by side: the libraries stay in FlashInfer's cache
    local model started=()
    for model in qwen2.5-7b llama-3.1-8b; do
        "$python" -m bench.attention --gate --sessions=0 --backend=xqa --model=$model --ctx=1024 --batch=1 --mode=eager &
        started+=($!)
    done
    local pid status=0
    for pid in "${started[@]}"; do wait "$pid" || status=1; done
    return $status
}

ask_gpu
export -f compile_xqa
export python
step compile 120 bash -c compile_xqa
for model in qwen2.5-7b llama-3.1-8b mistral-7b-v0.3; do
    step "layer $model" 90 "$python" -m bench.layer --model=$model --backend=native,sdpa \
        --json="$out/$gpu-layer-$model.json.gz" --plot="$out/$gpu-layer-$model.png"
done
mkdir -p "$out/$gpu-study"
step step 120 "$python" -m bench.step --model=qwen2.5-7b --json="$out/$gpu-study/step.json" \
    --md="$out/$gpu-study/step.md" --plot="$out/$gpu-study/step.png"
step attention 300 "$python" -m bench.attention --sessions=1 --mode="${MODES:-eager,graph}" --json="$out/$gpu-attention.json.gz" \
    --md="$out/$gpu-attention.md" --plot="$out/$gpu-attention.png"
step gemv 90 "$python" -m bench.op --op=gemv --mode=native,graph --json="$out/$gpu-gemv.json"
step tune 90 "$python" -m bench.tune --model=qwen2.5-7b --batch=1,4 --ctx=1024,2048,16384 --plans="$out/$gpu-plans.json" \
    --json="$out/$gpu-tune.json.gz" --md="$out/$gpu-tune.md"
if [[ $before ]]; then
    export -f turn take_turns
    export before rounds out python
    step before 300 bash -c 'take_turns before after'
fi
name_failures
