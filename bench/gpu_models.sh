#!/usr/bin/env bash
# A whole decode step of every built-in model, on a GPU: launchtax's kernels against SDPA in a graph. Result documents go
# to the folder given (bench/results where none is).
#
#   bash bench/gpu_models.sh FOLDER PYTHON
#
# On an H200 (2026-11-30): models 156 s, window 24 s. Predicted: tests 20 s, qkv 15 s.
#
# tests     layers with the features of other families against the reference, on this GPU
# qkv       the fused projections of qwen3-8b and 4b (QK norm); llama-3.1-8b has the 8b shape     GPU-qkv-MODEL.json
# models    a step of each model at ctx 2048, batch 1                                             GPU-models/
# window    gemma-3-4b, whose window is 1024 slots, at ctx 900                                    GPU-models-window/
#
# MODEL_STEPS="models" runs those alone. Exit status: 0 where every step succeeded; the failed ones are named at the end.
. "$(dirname "$0")/gpu_steps.sh" || exit 2
steps=${MODEL_STEPS:-tests qkv models window}
ask_gpu
arms=native/block:graph-pdl,native/block:graph,sdpa:graph
step tests 90 "$python" -m pytest -q tests/gpu/test_cuda.py -k features
for model in qwen3-8b llama-3.1-8b qwen3-4b; do
    step "qkv $model" 40 "$python" -m bench.op --op=qkv_gemv --model=$model --batch=1,4 --mode=graph,graph-pdl --steps=20 \
        --json="$out/$gpu-qkv-$model.json"
done
step models 420 "$python" -m bench.sweep --out="$out/$gpu-models" --ctx=2048 --batch=1 --arm=$arms --steps=15 \
    --model=qwen3-0.6b,qwen3-4b,qwen3-8b,llama-3.2-1b,llama-3.2-3b,phi-4-mini,vla,study
step window 40 "$python" -m bench.sweep --out="$out/$gpu-models-window" --ctx=900 --batch=1 --arm=$arms --steps=15 \
    --model=gemma-3-4b
name_failures
