#!/usr/bin/env bash
# The 4-bit kernels on a GPU, in one go: ours and every library's that is there. Result documents, tables, pictures and
# logs go to the folder given.
#
#   bash bench/gpu_int4.sh FOLDER PYTHON                   # the defaults: bench/results, python3
#   INT4_STEPS="validate int4" INT4_KERNELS="native marlin machete awq gptq" INT4_NAME=vllm bash bench/gpu_int4.sh FOLDER
#
# Where a command may take 10 minutes at most, in two, with the same FOLDER: neither takes longer, by its limits.
#
#   INT4_STEPS="compile validate arch sanitize" bash bench/gpu_int4.sh FOLDER
#   INT4_STEPS="int4 layer" bash bench/gpu_int4.sh FOLDER
#
# Steps. The first four are not timed and run side by side, each kernel in a process of its own:
#
# compile    GemLite's Triton kernels for the models' shapes; 240 s at most
# validate   bench.int4 --validate of every kernel, GemLite's in bf16 and groups of 128 only (it compiles for each
#            shape); ExLlamaV2 compiles here; 300 s at most
# arch       bench.int4 --arch=sm89; 420 s at most. The build must have PTX of compute_80 or compute_89:
#            CMAKE_ARGS='-DPYKERNELS_CUDA_ARCHITECTURES=89-virtual;90a-real' make build PYTHON=python3
# sanitize   compute-sanitizer's four tools over the 4-bit ops' tests; 300 s at most
# int4       bench.int4 over the models' shapes and layers; 300 s at most                   FOLDER/GPU-int4.json, .md, .png
# layer      bench.layer --quant=int4 of each model; 90 s at most each               FOLDER/GPU-int4-layer-MODEL.json, .png
#
# What there is to set, by environment variables: INT4_STEPS; INT4_KERNELS (all); INT4_MODELS; INT4_NAME, which goes into
# the names of what bench.int4 writes, so that libraries can come in two goes; INT4_FLAGS, more flags for the timed
# steps. A library that is not there is listed as unsupported. One whose validation did not end, crashed or raised is left
# out of what is timed, and named: an illegal access would take all kernels of that process with it. FOLDER's logs say so,
# of whatever call. One that was wrong is timed with the others, to be said wrong there. A step that is cut off keeps what
# it has: the trials of a validation, the shapes of bench.int4 (the document says "interrupted").
#
# On an H100 with 16 cores (2026-11-28): 245 s side by side, FlashInfer compiling beside them (ExLlamaV2's extension, GemLite's
# kernels and the PTX of --arch are the long ones), 17 s of int4 a model with five kernels and --mode=graph, 15 s a layer.
#
# Exit status: 0 where every step succeeded; the failed ones are named at the end.
. "$(dirname "$0")/gpu_steps.sh" || exit 2
steps=${INT4_STEPS:-compile validate arch sanitize int4 layer}
name=${INT4_NAME:+-$INT4_NAME}
read -r -a models <<< "${INT4_MODELS:-qwen2.5-7b llama-3.1-8b mistral-7b-v0.3}"
read -r -a flags <<< "${INT4_FLAGS:-}"
ask_gpu
read -r -a kernels <<< "${INT4_KERNELS:-$("$python" -c 'from bench.backends import int4; print(*int4.registry())')}"
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability}  # what ExLlamaV2 compiles for

# Side by side: `start` begins a job, `finish` waits for all and prints what of their logs says how they ended.
jobs=() pids=()
start() {  # name, seconds, command
    jobs+=("$1")
    (
        begin=$SECONDS
        timeout "$2" "${@:3}" > "$out/int4-$1.log" 2>&1
        status=$?
        echo "$1: status $status, $((SECONDS - begin)) s" >> "$out/int4-$1.log"
        exit $status
    ) &
    pids+=($!)
}
finish() {
    local i status
    for i in "${!jobs[@]}"; do
        wait "${pids[i]}"
        status=$?
        ((status)) && failed+=("${jobs[i]}")
        echo "--- ${jobs[i]}"
        ((status)) && tail -n 6 "$out/int4-${jobs[i]}.log"
        grep -E '^[a-z0-9-]+: |unsupported|^  (wrong|error|refused)|^PTX|PTX was|PTX, comp|with a problem|passed|failed|ERROR SUMM|RACECHECK SUMM' \
            "$out/int4-${jobs[i]}.log" | tail -n 20
    done
}
unfit() {  # a kernel: says why its validation bars it from a process that it shares with others; nothing where none does
    local log="$out/int4-validate-$1.log" status
    [[ -e $log ]] || return
    status=$(sed -n '$s/.*: status \([0-9]*\),.*/\1/p' "$log")
    if [[ -z $status || $status == 124 ]]; then
        echo "its validation did not end"
    elif ((status > 2)); then
        echo "its validation ended with status $status"
    elif grep -q 'of which raised' "$log"; then
        echo "it raised in its validation"
    fi
}

begin=$SECONDS
if wanted compile && [[ " ${kernels[*]} " == *" gemlite "* ]] && "$python" -c 'import gemlite' 2> /dev/null; then
    for model in "${models[@]}"; do
        start "compile-$model" 240 "$python" -m bench.int4 --what=shapes --kernel=gemlite --model="$model" --mode=eager \
            --steps=2 --warmup=0 --l2=warm "${flags[@]}"
    done
fi
if wanted validate; then
    # The reference is computed on the CPU: its cores are divided among the kernels.
    threads=$(($(nproc) / ${#kernels[@]}))
    threads=$((threads < 2 ? 2 : threads > 8 ? 8 : threads))
    for kernel in "${kernels[@]}"; do
        less=()
        [[ $kernel == gemlite ]] && less=(--group=128 --dtype=bf16)
        start "validate-$kernel" 300 env OMP_NUM_THREADS="$threads" MAX_JOBS=12 "$python" -m bench.int4 --validate \
            --kernel="$kernel" "${less[@]}" --json="$out/$gpu-int4-validate-$kernel.json"
    done
fi
wanted arch && start arch 420 "$python" -m bench.int4 --arch=sm89
wanted sanitize && start sanitize 300 make sanitize PYTHON="$python" SANITIZED="not fp16 and (int4_gemv and \
(544-131 or 3584-512 or 18944-258) and (1-bf16 or 3-bf16) or int4_swiglu and (544-33 or 512-1408) and (1-bf16 or 3-bf16) and not two \
or int4_layer and (tiny-32 or tiny-128) and (1-bf16 or 3-bf16))"
finish
echo "--- side by side: $((SECONDS - begin)) s"

show() {  # lines of its output that are shown, and a step
    local log="$out/int4-${2// /-}.log"
    step "${@:2}" > "$log" 2>&1
    head -n 1 "$log"
    tail -n "$(($1 + 1))" "$log"
}
timed=()
for kernel in "${kernels[@]}"; do
    why=$(unfit "$kernel")
    [[ -z $why ]] && timed+=("$kernel") || { wanted int4 && echo "not timed: $kernel: $why"; }
done
list=$(IFS=,; echo "${timed[*]}")
wanted int4 && [[ -z $list ]] && echo "int4: no kernel is left to time" && failed+=(int4)
wanted int4 && [[ -n $list ]] && show 40 int4 300 "$python" -m bench.int4 --kernel="$list" --model="$(IFS=,; echo "${models[*]}")" \
    --steps=15 --predict=l4 "${flags[@]}" --json="$out/$gpu-int4$name.json" --md="$out/$gpu-int4$name.md" \
    --plot="$out/$gpu-int4$name.png"
if wanted layer; then
    for model in "${models[@]}"; do
        show 12 "layer $model" 90 "$python" -m bench.layer --quant=int4 --backend=native --model="$model" "${flags[@]}" \
            --json="$out/$gpu-int4-layer-$model.json" --plot="$out/$gpu-int4-layer-$model.png"
    done
fi
name_failures
