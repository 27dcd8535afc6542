#!/usr/bin/env bash
# The variant of the 4-bit GEMVs that no GPU has measured yet (csrc/cuda/int4_variants.h) against the default: is it
# right, and is it faster. docs/tried.md has what is predicted. Result documents go to FOLDER/int4-default and
# FOLDER/int4-VARIANT.
#
#   bash bench/gpu_int4_variants.sh FOLDER PYTHON                              # the defaults: bench/results, python3
#
# Steps, with the seconds that each may take, and those predicted for an H200 with 16 cores:
#
# validate    90  40  bench.int4 --validate of the variant, bf16, groups of 128
# layer      180  90  a layer of each of INT4_MODELS, the default and the variant in turns, ROUNDS times (2); then
#                     bench.compare of both
# shapes     120  50  bench.int4's shapes, likewise once: the share of a plain read of the same bytes
#
# INT4_STEPS="validate layer" runs those alone; INT4_VARIANT (split); INT4_MODELS (qwen2.5-7b llama-3.1-8b). Exit status:
# 0 where every step succeeded, whatever was faster; the failed ones are named at the end.
. "$(dirname "$0")/gpu_steps.sh" || exit 2
steps=${INT4_STEPS:-validate layer shapes}
rounds=${ROUNDS:-2}
variant=${INT4_VARIANT:-split}
read -r -a models <<< "${INT4_MODELS:-qwen2.5-7b llama-3.1-8b}"
mkdir -p "$out/int4-default" "$out/int4-$variant"

# Both by turns: the variant's name, or nothing, is what the kernels read when they are first launched.
in_turns() {  # times, stem of the documents, module and flags
    local round one
    for ((round = 1; round <= $1; round++)); do
        for one in "" "$variant"; do
            PYKERNELS_INT4_VARIANT=$one "$python" -m "${@:3}" --json="$out/int4-${one:-default}/$2-$round.json" ||
                return 1
        done
    done
}
sessions() {  # default or the variant, stem: its documents, as bench.compare takes them
    local round files=()
    for ((round = 1; round <= rounds; round++)); do files+=("$out/int4-$1/$2-$round.json"); done
    (IFS=,; echo "${files[*]}")
}
all_layers() {
    local model
    for model in "${models[@]}"; do
        in_turns "$rounds" "layer-$model" bench.layer --quant=int4 --backend=native --fusion=block \
            --mode=graph,graph-pdl --model="$model" --steps=20 > /dev/null || return 1
        "$python" -m bench.compare "$(sessions default "layer-$model")" "$(sessions "$variant" "layer-$model")"
        (($? <= 1)) || return 1  # 1: something is slower, which is a result
    done
}
all_shapes() {
    in_turns 1 shapes bench.int4 --kernel=native --what=shapes --model="$(IFS=,; echo "${models[*]}")" \
        --mode=graph,graph-pdl --steps=15
}

step validate 90 env PYKERNELS_INT4_VARIANT="$variant" "$python" -m bench.int4 --validate --kernel=native --dtype=bf16 \
    --group=128 --json="$out/int4-$variant-validate.json"
step layer 180 all_layers
step shapes 120 all_shapes
name_failures
