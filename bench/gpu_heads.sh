#!/usr/bin/env bash
# Attention at every head_dim and group, on a GPU: is it right, how fast beside the peers that take the shape, and are the
# heads of the study's models as fast as before. Result documents go to the folder given (bench/results where none is).
#
#   bash bench/gpu_heads.sh FOLDER PYTHON
#   BEFORE=../older bash bench/gpu_heads.sh FOLDER       # and the step before, against another checkout that is built
#
# On an H200 with 16 cores (2026-11-30): grid 18 s, long 13 s, pdl 10 s each. Predicted: cells 15 s each (FlashInfer compiles
# beside grid), before 75 s.
#
# grid      tests/gpu/test_gqa_grid.py: FlashInfer's own decode grid, 720 cases in full caches and in longer ones, in 12
#           processes; heads-grid-*.log
# cells     32/32, 32/32x96, 8/1x256 and others at 2048, beside SDPA and one of FlashInfer, its tensor-core kernel and
#           FlashAttention-3                                                                    GPU-heads-PEER.json
# long      as many KV heads as query heads, longer contexts                                         GPU-heads-long.json
# pdl       the heads of Llama-2-7B and Gemma-2B in plain graphs and in graphs with PDL               GPU-heads-NAME.json
# before    28/4, 32/8 and 32/32: both checkouts take turns, ROUNDS times (3), into FOLDER/heads-before and -after, and
#           the same with -mha; bench.compare says whether anything changed
#
# HEADS_STEPS="grid cells" runs those alone. Exit status: 0 where every step succeeded; the failed ones are named at the end.
. "$(dirname "$0")/gpu_steps.sh" || exit 2
steps=${HEADS_STEPS:-grid cells long pdl before}
before=${BEFORE:-}
rounds=${ROUNDS:-3}
cells=(--heads=32/32,32/32x96,8/1x256,8/4x256,32/8x64,32/32x80 --ctx=2048)

compile_all() {  # what fails here is told by the step that needs it
    local heads
    for heads in 32/32 32/32x96 8/1x256 32/8x64; do
        "$python" -m bench.attention --gate --l2=warm --sessions=0 --backend=flashinfer,flashinfer-tc --heads=$heads --ctx=64 \
            >/dev/null 2>&1 &
    done
    wait
}

grid() {  # a process each of four head_dims and three numbers of KV heads
    local dim kv_heads running=() failures=0
    for dim in 64 96 128 256; do
        for kv_heads in 4 8 32; do
            "$python" -m pytest -q -p no:cacheprovider tests/gpu/test_gqa_grid.py -k "grid and $dim-$kv_heads-" \
                >"$out/heads-grid-$dim-$kv_heads.log" 2>&1 &
            running+=("$! $dim-$kv_heads")
        done
    done
    for shard in "${running[@]}"; do
        wait "${shard% *}" || { failures=1; tail -n 15 "$out/heads-grid-${shard#* }.log"; }
        echo "${shard#* }: $(tail -n 1 "$out/heads-grid-${shard#* }.log")"
    done
    return $failures
}

config() {  # n_heads, n_kv_heads, head_dim: a config.json of a model with these heads
    echo "{\"model_type\": \"llama\", \"hidden_size\": $(($1 * $3)), \"num_hidden_layers\": 1, \"intermediate_size\": 8192,
        \"num_attention_heads\": $1, \"num_key_value_heads\": $2, \"head_dim\": $3, \"vocab_size\": 32000,
        \"max_position_embeddings\": 16384, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, \"hidden_act\": \"silu\"}"
}

turn() {  # the checkout, the folders of its documents (of this name, and with -mha behind it), the turn's number
    mkdir -p "$2" "$2-mha"
    (cd "$1" && PYTHONPATH=$PWD "$python" -m bench.op --op=gqa_decode --model=qwen2.5-7b,llama-3.1-8b --ctx=1024,2048,16384 \
        --mode=graph,graph-pdl --backend=native --json="$2/gqa_decode-$3.json") >/dev/null || return 1
    (cd "$1" && PYTHONPATH=$PWD "$python" -m bench.attention --heads=32/32 --ctx=2048,4096,8192 --batch=1 --mode=graph \
        --backend=native --sessions=0 --json="$2-mha/attention-$3.json") >/dev/null
}

compare_turns() {
    local folder
    folder=$(cd "$out" && pwd)
    take_turns heads-before heads-after || return 1
    "$python" -m bench.compare "$folder/heads-before-mha" "$folder/heads-after-mha"
    "$python" -m bench.compare "$folder/heads-before" "$folder/heads-after"
}

ask_gpu
if wanted cells; then compile_all & compiling=$!; fi
export -f grid
export rounds out python
step grid 90 bash -c grid
[[ ${compiling:-} ]] && wait "$compiling"
# Apart: a library that ends its process takes no other backend along.
for peer in flashinfer flashinfer-tc fa3; do
    step "cells $peer" 60 "$python" -m bench.attention "${cells[@]}" --batch=1 --sessions=0 --backend=native,sdpa,$peer \
        --json="$out/$gpu-heads-$peer.json"
done
step long 60 "$python" -m bench.attention --heads=32/32,32/32x96 --ctx=4096,8192,16384 --batch=1 --sessions=0 \
    --backend=native,sdpa --json="$out/$gpu-heads-long.json"
for heads in "llama-2-7b 32 32 128" "gemma-2b 8 1 256"; do
    read -r name sizes <<<"$heads"
    # shellcheck disable=SC2086
    config $sizes >"$out/$name-heads.json"
    step "pdl $name" 40 "$python" -m bench.op --op=gqa_decode --config="$out/$name-heads.json" --ctx=2048,8192 \
        --mode=graph,graph-pdl --backend=native --json="$out/$gpu-heads-$name.json"
done
if [[ $before ]]; then
    export -f turn take_turns compare_turns
    export before
    step before 150 bash -c compare_turns
fi
name_failures
