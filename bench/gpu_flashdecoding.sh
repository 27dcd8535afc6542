#!/usr/bin/env bash
# FlashDecoding++'s three ideas on a GPU, each on and off, alone and together: what docs/flashdecoding++.md quotes. Result
# documents go to the folder given (bench/results where none is).
#
#   bash bench/gpu_flashdecoding.sh FOLDER PYTHON
#
# On an H200 with 16 cores (2026-11-30): attention 25 s, fallback 9 s, gemv 20 s, layer 30 s, step 45 s. Predicted: tests
# 15 s; inside 20 s.
#
# tests      softmax with a unified maximum on this GPU: fall-backs have online's bits, and are counted
# attention  online, unified and Flash-Decoding's two kernels (torch's SDPA, flash): batch 1 to 8, contexts 1K to 64K
#                                                                               GPU-flashdecoding-attention.json
# fallback   the same with a phi that fits no score: what a fall-back costs     GPU-flashdecoding-fallback.json
# gemv       flat GEMM: tensor-core GEMV and cuBLAS (F.linear)                  GPU-flashdecoding-gemv.json
# layer      a layer at batch 1 and 8: fusion, graphs and softmax, each on and off   GPU-flashdecoding-layer-bBATCH.json
# step       a whole step, the same                                             GPU-flashdecoding-step-bBATCH.json
# sanitizer  not by default: compute-sanitizer's four tools over some of `tests`: 13 s each, and racecheck some 250 s
#            (predicted); FLASHDECODING_TOOLS=racecheck is that one alone
# inside     not by default: where the time in the cluster plan goes, by in-kernel timestamps; STAMPED is a checkout built
#            with CMAKE_ARGS=-DPYKERNELS_TIMESTAMPS=ON                          GPU-flashdecoding-inside-NAME.json
#
# FLASHDECODING_STEPS="tests attention" runs those alone. Exit status: 0 where every step succeeded; the failed ones are
# named at the end.
. "$(dirname "$0")/gpu_steps.sh" || exit 2
steps=${FLASHDECODING_STEPS:-tests attention fallback gemv layer step}
ask_gpu
name=$out/$gpu-flashdecoding
own=(--softmax=online,unified)
step tests 60 "$python" -m pytest -q tests/gpu/test_gqa_unified.py
step attention 130 "$python" -m bench.attention "${own[@]}" --backend=native,sdpa-flash --model=qwen2.5-7b,llama-3.1-8b \
    --batch=1,2,4,8 --mode=graph --calls=90 --warmup=20 --sessions=0 --no-trace-kernels --json="$name-attention.json"
step fallback 40 "$python" -m bench.attention "${own[@]}" --phi=1000 --backend=native --model=qwen2.5-7b --batch=1 \
    --ctx=1024,2048,16384,65536 --mode=graph --calls=30 --warmup=5 --sessions=0 --no-trace-kernels \
    --json="$name-fallback.json"
step gemv 60 "$python" -m bench.op --op=gemv --model=qwen2.5-7b --batch=1,2,4,8 --mode=graph --steps=10 \
    --json="$name-gemv.json"
for batch in 1 8; do
    step "layer $batch" 60 "$python" -m bench.layer "${own[@]}" --backend=native,sdpa --model=qwen2.5-7b --ctx=2048 \
        --batch="$batch" --mode=native,graph,graph-pdl --json="$name-layer-b$batch.json"
    arms=()
    for fusion in none block; do
        arms+=("native/$fusion:native" "native/$fusion:graph" "native-unified/$fusion:graph")
    done
    step "step $batch" 70 "$python" -m bench.step --model=qwen2.5-7b --ctx=2048 --batch="$batch" \
        --arm="$(IFS=,; echo "${arms[*]},native/block:graph-pdl,native-unified/block:graph-pdl,sdpa:eager,sdpa:graph")" \
        --json="$name-step-b$batch.json"
done
if [[ " $steps " == *" sanitizer "* ]]; then
    for tool in ${FLASHDECODING_TOOLS:-memcheck racecheck synccheck initcheck}; do
        step "sanitizer $tool" 400 compute-sanitizer --tool "$tool" --error-exitcode=9 "$python" -m pytest -q \
            tests/gpu/test_gqa_unified.py -k "bf16 and (one_split or clusters or splits) or pdl and 1000"
    done
fi
if [[ " $steps " == *" inside "* ]]; then
    stamped=$(cd "${STAMPED:?a checkout built with in-kernel timestamps}" && pwd)
    folder=$(cd "$out" && pwd)
    inside() { (cd "$stamped" && PYTHONPATH=$stamped "$python" -m bench.inside "$@"); }
    for model in qwen2.5-7b llama-3.1-8b; do
        step "inside $model" 40 inside --model=$model --ctx=2048 --mode=graph --json="$folder/$gpu-flashdecoding-inside-$model.json"
    done
fi
name_failures
