#!/usr/bin/env bash
# The study's table of 4-bit steps for the GPU at hand: layers and whole steps of every 4-bit library that is there,
# with our own, the 16-bit SDPA layer and our 16-bit kernels on the same weights beside them in the same run.
#
#   bash bench/gpu_int4_step.sh FOLDER PYTHON                          # the defaults: bench/results, python3
#   INT4_STEPS="layer step" INT4_LIBRARIES=marlin,exllamav2 bash bench/gpu_int4_step.sh FOLDER
#
# Steps:
#
# compile    ExLlamaV2's extension and GemLite's Triton kernels, side by side, where they are there; 200 s at most,
#            and nothing where they were compiled before
# layer      bench.layer --quant=int4 of each of INT4_MODELS; 90 s at most each         FOLDER/GPU-int4-layer-MODEL.json
# step       bench.step --quant=int4 of INT4_STEP_MODEL; 230 s at most                       FOLDER/GPU-int4-step.json
# report     bench.report FOLDER: the study's Figure 8 for this card is in FOLDER/report          FOLDER/report
#
# Predicted for an H200 with 16 cores and every library (nothing of it was measured yet): compile 120 s, a layer 35 s, the
# step 130 s. So where a command may take 10 minutes, `compile` first, then the rest in one go.
#
# What there is to set, by environment variables: INT4_STEPS (compile layer step report); INT4_LIBRARIES (all);
# INT4_MODELS (qwen2.5-7b llama-3.1-8b); INT4_STEP_MODEL (qwen2.5-7b); INT4_ATTENTION (sdpa); INT4_FLAGS, more flags
# for layer and step; INT4_NAME, which goes into the names of the documents. A library that is not there is listed as
# unsupported; one that fails costs its own arms. But an illegal access takes the process along: leave that library out.
#
# Exit status: 0 where every step succeeded; the failed ones are named at the end.
. "$(dirname "$0")/gpu_steps.sh" || exit 2
steps=${INT4_STEPS:-compile layer step report}
name=${INT4_NAME:+-$INT4_NAME}
read -r -a models <<< "${INT4_MODELS:-qwen2.5-7b llama-3.1-8b}"
read -r -a flags <<< "${INT4_FLAGS:-}"
step_model=${INT4_STEP_MODEL:-qwen2.5-7b}
ask_gpu
libraries=${INT4_LIBRARIES:-$("$python" -c 'from bench.backends import linear_peers; print(",".join(linear_peers()))')}
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability}  # what ExLlamaV2 compiles for
common=(--quant=int4 --backend="native,$libraries,sdpa,native-dense" --fusion=block "${flags[@]}")
[[ -n ${INT4_ATTENTION:-} ]] && common+=(--attention="$INT4_ATTENTION")

compile() {  # each in a process of its own: the first layer of a library compiles what it needs
    local library pids=() status=0 pid
    for library in exllamav2 gemlite; do
        [[ ,$libraries, == *,$library,* ]] && "$python" -c "import importlib.util as u, sys
sys.exit(u.find_spec('$library') is None)" || continue
        MAX_JOBS=${MAX_JOBS:-12} timeout 200 "$python" -m bench.layer --quant=int4 --backend=$library --mode=eager --steps=2 \
            --warmup=0 --l2=warm --model="$step_model" > "$out/int4-compile-$library.log" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || status=1; done
    ((status)) && tail -n 5 "$out"/int4-compile-*.log
    return $status
}

show() {  # lines of its output that are shown, and a step
    local log="$out/int4-${2// /-}.log"
    step "${@:2}" > "$log" 2>&1
    head -n 1 "$log"
    grep -E '^ [a-z].*( eager | native | graph )|^(unsupported|wrong|error|oom|on the same)|^[a-z0-9/-]+:[a-z-]+:|^--- ' "$log" |
        tail -n "$1"
}

if wanted compile; then
    begin=$SECONDS
    compile || failed+=(compile)
    echo "--- compile: $((SECONDS - begin)) s"
fi
for model in "${models[@]}"; do
    wanted layer && show 60 "layer $model" 90 "$python" -m bench.layer "${common[@]}" --model="$model" --steps=20 \
        --json="$out/$gpu-int4-layer-$model$name.json" --plot="$out/$gpu-int4-layer-$model$name.png"
done
wanted step && show 90 step 230 "$python" -m bench.step "${common[@]}" --model="$step_model" --mode=eager,native,graph,graph-pdl \
    --steps=15 --json="$out/$gpu-int4-step$name.json" --plot="$out/$gpu-int4-step$name.png"
wanted report && show 3 report 120 "$python" -m bench.report "$out"
name_failures
