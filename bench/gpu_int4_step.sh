#!/usr/bin/env bash
# The study's table of 4-bit steps for the GPU at hand: layers and whole steps of every 4-bit library that is there,
# with our own, the 16-bit SDPA layer and our 16-bit kernels on the same weights beside them in the same run.
#
#   bash bench/gpu_int4_step.sh FOLDER PYTHON                          # the defaults: bench/results, python3
#   INT4_STEPS="layer step" INT4_LIBRARIES=marlin,exllamav2 bash bench/gpu_int4_step.sh FOLDER
#
# Where the libraries come in two goes, each of at most 10 minutes; the report of both folders has them in one table:
#
#   INT4_NAME=first INT4_LIBRARIES=tinygemm,torchao,marlin,machete,awq,gptq INT4_STEPS="layer step" \
#       bash bench/gpu_int4_step.sh FIRST
#   export INT4_NAME=second INT4_LIBRARIES=bnb-nf4,exllamav2,exl2,gemlite
#   INT4_STEPS=compile bash bench/gpu_int4_step.sh SECOND; INT4_STEPS="layer step" bash bench/gpu_int4_step.sh SECOND
#   python -m bench.report FIRST SECOND
#
# Steps:
#
# compile    ExLlamaV2's extension and GemLite's Triton kernels, side by side, where they are there; 400 s at most,
#            and nothing where they were compiled before
# layer      bench.layer --quant=int4 of each of INT4_MODELS; 90 s at most each         FOLDER/GPU-int4-layer-MODEL.json
# step       bench.step --quant=int4 of INT4_STEP_MODEL; 300 s at most                       FOLDER/GPU-int4-step.json
# report     bench.report FOLDER: the study's Figure 8 for this card is in FOLDER/report          FOLDER/report
#
# Of the two goes above, on an H200 whose CPU other work had (2026-11-30): a layer took 36 to 47 s, the step some 240 s,
# compile 134 to 190 s.
#
# A library that is not there is listed as unsupported, and one that fails costs its own arms. An illegal access takes
# its process along: where a run leaves no document, each library runs once more in a process of its own, 45 s a layer
# and 75 s a step, for as long as INT4_SECONDS allow. ExLlamaV2 is left out where its extension is not compiled: it
# would be, by the process that others are measured in.
#
# What there is to set, by environment variables: INT4_STEPS (compile layer step report); INT4_LIBRARIES (all);
# INT4_MODELS (qwen2.5-7b llama-3.1-8b); INT4_STEP_MODEL (qwen2.5-7b); INT4_ATTENTION (sdpa); INT4_FLAGS, more flags
# for layer and step; INT4_NAME, which goes into the names of the documents; INT4_SECONDS (570) for everything.
#
# Exit status: 0 where every step succeeded; the failed ones are named at the end.
. "$(dirname "$0")/gpu_steps.sh" || exit 2
steps=${INT4_STEPS:-compile layer step report}
name=${INT4_NAME:+-$INT4_NAME}
seconds=${INT4_SECONDS:-570}
read -r -a models <<< "${INT4_MODELS:-qwen2.5-7b llama-3.1-8b}"
read -r -a flags <<< "${INT4_FLAGS:-}"
step_model=${INT4_STEP_MODEL:-qwen2.5-7b}
ask_gpu
libraries=${INT4_LIBRARIES:-$("$python" -c 'from bench.backends import linear_peers; print(",".join(linear_peers()))')}
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$capability}  # what ExLlamaV2 compiles for
extensions=${TORCH_EXTENSIONS_DIR:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/torch_extensions}

there() {  # a Python package
    "$python" -c "import importlib.util as u, sys
sys.exit(u.find_spec('$1') is None)"
}
named() { [[ ,$libraries, == *,$1,* ]]; }  # a library, among those that are wanted
without() {  # those libraries
    local one kept=()
    for one in ${libraries//,/ }; do
        [[ " $* " == *" $one "* ]] || kept+=("$one")
    done
    libraries=$(IFS=,; echo "${kept[*]}")
}
# A process that was killed while it compiled leaves its lock, for which every later one would wait.
unlock() { rm -f "$extensions"/*/exllamav2_ext/lock; }

compile() {  # each in a process of its own: the first layer of a library compiles what it needs
    local library model job jobs=() pids=() status=0 pid
    if { named exllamav2 || named exl2; } && there exllamav2; then
        library=exllamav2
        named exllamav2 || library=exl2
        jobs+=("$library $step_model")
    fi
    if named gemlite && there gemlite; then
        for model in $(printf '%s\n' "$step_model" "${models[@]}" | sort -u); do jobs+=("gemlite $model"); done
    fi
    unlock
    for job in "${jobs[@]}"; do
        read -r library model <<< "$job"
        MAX_JOBS=${MAX_JOBS:-14} timeout --kill-after=10 400 "$python" -m bench.layer --quant=int4 --backend="$library" \
            --mode=eager --steps=2 --warmup=0 --l2=warm --model="$model" > "$out/int4-compile-$library-$model.log" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || status=1; done
    unlock
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

# All libraries in one process, at most so many seconds; without a document, each in its own, at most so many.
together() {  # name, seconds, seconds each, stem of the documents, lines shown, flags
    local left library alone=$3 stem="$out/$4"
    left=$((seconds - SECONDS))
    wanted "${1%% *}" || return 0
    rm -f "$stem.json"
    show "$5" "$1" $((left < $2 ? (left > 1 ? left : 1) : $2)) "$python" -m "${@:6}" "${common[@]}" \
        --backend="native,${libraries:+$libraries,}sdpa,native-dense" --json="$stem.json" --plot="$stem.png"
    [[ -e $stem.json ]] && return
    for library in ${libraries//,/ }; do
        ((seconds - SECONDS > alone)) || { echo "no time is left for $1 of $library alone" && continue; }
        show "$5" "$1 $library" "$alone" "$python" -m "${@:6}" "${common[@]}" --backend="native,$library,sdpa" \
            --json="$stem-$library.json"
    done
}

if wanted compile; then
    begin=$SECONDS
    compile || failed+=(compile)
    echo "--- compile: $((SECONDS - begin)) s"
fi
if { wanted layer || wanted step; } && { named exllamav2 || named exl2; } && there exllamav2 && ! there exllamav2_ext &&
    ! compgen -G "$extensions/*/exllamav2_ext/exllamav2_ext.so" > /dev/null; then
    echo "left out: exllamav2, exl2: the extension is not compiled (INT4_STEPS=compile)"
    without exllamav2 exl2
    failed+=("exllamav2's extension")
fi
common=(--quant=int4 --fusion=block "${flags[@]}")
[[ -n ${INT4_ATTENTION:-} ]] && common+=(--attention="$INT4_ATTENTION")
for model in "${models[@]}"; do
    together "layer $model" 90 45 "$gpu-int4-layer-$model$name" 60 bench.layer --model="$model" --steps=20
done
together step 300 75 "$gpu-int4-step$name" 90 bench.step --model="$step_model" --mode=eager,native,graph,graph-pdl --steps=15
wanted report && show 3 report 120 "$python" -m bench.report "$out"
name_failures
