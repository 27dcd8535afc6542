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
# On an H200 with 16 cores: layers 19 s each, step 38 s, attention 280 s, gemv 20 s; a turn 25 s.
#
# Exit status: 0 where every step succeeded; the failed ones are named at the end.
. "$(dirname "$0")/gpu_steps.sh" || exit 2
steps=${HEADLINE_STEPS:-layer step attention gemv before}
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

ask_gpu
for model in qwen2.5-7b llama-3.1-8b mistral-7b-v0.3; do
    step "layer $model" 90 "$python" -m bench.layer --model=$model --backend=native,sdpa \
        --json="$out/$gpu-layer-$model.json.gz" --plot="$out/$gpu-layer-$model.png"
done
mkdir -p "$out/$gpu-study"
step step 120 "$python" -m bench.step --model=qwen2.5-7b --json="$out/$gpu-study/step.json" \
    --md="$out/$gpu-study/step.md" --plot="$out/$gpu-study/step.png"
step attention 400 "$python" -m bench.attention --sessions=1 --json="$out/$gpu-attention.json.gz" \
    --md="$out/$gpu-attention.md" --plot="$out/$gpu-attention.png"
step gemv 90 "$python" -m bench.op --op=gemv --mode=native,graph --json="$out/$gpu-gemv.json"
if [[ $before ]]; then
    export -f turn take_turns
    export before rounds out python
    step before 300 bash -c 'take_turns before after'
fi
name_failures
