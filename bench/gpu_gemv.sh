#!/usr/bin/env bash
# GEMVs and whole decode steps over batches, on a GPU: what docs/gemv-batch.md quotes. Result documents go to the folder
# given (bench/results where none is).
#
#   bash bench/gpu_gemv.sh FOLDER PYTHON
#
# On an H200 with 16 cores (2026-11-29): tests 25 s, gemv 20 s a model, a step 13 s; small 12 s (2026-11-30). Predicted,
# not run yet: sanitize 60 s.
#
# tests     the GEMVs against the reference, on this GPU
# gemv      every projection of the models at batch 1, 2, 4 and 8, against F.linear, in graphs      GPU-gemv-batch.json
# fused     norm + gate + up                                                                       GPU-swiglu_gemv-batch.json
# layer     one layer at each batch, ours and SDPA's in graphs; bench.report draws them            GPU-layer-bBATCH.json
# step      a whole step at each batch, against SDPA in a graph                                    GPU-step-bBATCH.json
# small     a step of Llama-3.2-1B, against SDPA in a graph                                        GPU-step-llama-3.2-1b.json
# sanitize  compute-sanitizer's four tools over the tensor-core GEMVs of long rows (12 warps)
#
# GEMV_STEPS="gemv step" runs those alone. Exit status: 0 where every step succeeded; the failed ones are named at the
# end.
. "$(dirname "$0")/gpu_steps.sh" || exit 2
steps=${GEMV_STEPS:-tests gemv fused layer step small sanitize}
ask_gpu
batches=1,2,4,8
step tests 120 "$python" -m pytest -q tests/gpu/test_cuda.py -k "gemv and not int4"
step gemv 150 "$python" -m bench.op --op=gemv --model=qwen2.5-7b,llama-3.1-8b --batch=$batches --mode=graph --steps=10 \
    --json="$out/$gpu-gemv-batch.json"
step fused 60 "$python" -m bench.op --op=swiglu_gemv --model=qwen2.5-7b,llama-3.1-8b --batch=$batches --mode=graph \
    --steps=10 --json="$out/$gpu-swiglu_gemv-batch.json"
for batch in ${batches//,/ }; do
    step "layer $batch" 60 "$python" -m bench.layer --model=qwen2.5-7b --ctx=2048 --batch="$batch" --backend=native,sdpa \
        --fusion=block --mode=graph,graph-pdl --json="$out/$gpu-layer-b$batch.json"
    step "step $batch" 60 "$python" -m bench.step --model=qwen2.5-7b --ctx=2048 --batch="$batch" \
        --arm=native/block:graph-pdl,native/block:graph,sdpa:graph --json="$out/$gpu-step-b$batch.json"
done
step small 40 "$python" -m bench.step --model=llama-3.2-1b --ctx=256 \
    --arm=native/block:graph-pdl,native/block:graph,sdpa:graph --json="$out/$gpu-step-llama-3.2-1b.json"
sanitize() {  # all tools side by side; a tool's words are printed where it found something
    local tool folder pids=() found=0
    folder=$(mktemp -d)
    for tool in memcheck racecheck synccheck initcheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $tool --error-exitcode 1 "$python" -m pytest -q -x \
            tests/gpu/test_cuda.py -k "gemv and 4104 and not (int4 or fp16)" > "$folder/$tool" 2>&1 &
        pids+=($!)
    done
    for tool in memcheck racecheck synccheck initcheck; do
        wait "${pids[0]}" || { found=1 && cat "$folder/$tool"; }
        pids=("${pids[@]:1}")
    done
    return $found
}
export -f sanitize
export python
step sanitize 150 bash -c sanitize
name_failures
