#!/usr/bin/env bash
# Everything that needs a GPU, in one go and a few minutes: the tests, the benchmarks that docs/results.md quotes, the
# sanitizer. Result documents go to the folder given (bench/results where none is).
#
#   make gpu-check                      # builds first
#   bash bench/gpu_check.sh FOLDER PYTHON
#
# Exit status: 0 where every step succeeded; the failed ones are named at the end.
. "$(dirname "$0")/gpu_steps.sh" || exit 2
ask_gpu
# Nothing of these is timed: side by side, and before anything that is.
tests() {
    local part pids=() status=0
    for part in int4_layer "int4 and not int4_layer" gqa_decode "not int4 and not gqa_decode"; do
        "$python" -m pytest -q tests/gpu/test_cuda.py -k "$part" & pids+=($!)
    done
    "$python" -m pytest -q tests/package/test_cupti.py & pids+=($!)
    "$python" -m pytest -q tests/gpu/test_cuda_ranges.py & pids+=($!)
    for pid in "${pids[@]}"; do wait "$pid" || status=1; done
    return $status
}
echo "--- tests and sanitizer"
begin=$SECONDS
make sanitize PYTHON="$python" & sanitizer=$!
tests || failed+=(tests)
wait "$sanitizer" || failed+=(sanitizer)
echo "--- tests and sanitizer: $((SECONDS - begin)) s"
for model in qwen2.5-7b llama-3.1-8b mistral-7b-v0.3; do
    step "layer $model" 90 "$python" -m bench.layer --model=$model --backend=native,sdpa \
        --json="$out/$gpu-layer-$model.json.gz" --plot="$out/$gpu-layer-$model.png"
done
step gemv 90 "$python" -m bench.op --op=gemv --mode=native,graph --json="$out/$gpu-gemv.json"
step swiglu_gemv 60 "$python" -m bench.op --op=swiglu_gemv --mode=native,graph --json="$out/$gpu-swiglu_gemv.json"
step gqa_decode 60 "$python" -m bench.op --op=gqa_decode --ctx=2048,16384 --mode=native,graph \
    --json="$out/$gpu-gqa_decode.json"
step rmsnorm 40 "$python" -m bench.op --op=rmsnorm --mode=native,graph --json="$out/$gpu-rmsnorm.json"
step controls 40 "$python" -m bench.op --op=spin --json="$out/$gpu-controls.json"
name_failures
