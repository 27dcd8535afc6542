#!/usr/bin/env bash
# Launch overhead on a GPU, in one go: captured steps launched again, the layer's ladders with all their parts, the table
# of launchers, and the ladders of a block of plain torch and of a transformers decoder layer. Result documents and
# pictures go to the folder given, nine files at most.
#
#   bash bench/gpu_launch.sh FOLDER PYTHON               # the defaults: bench/results, python3
#   LAUNCH_STEPS="layer launchers" bash bench/gpu_launch.sh FOLDER
#
# Libraries that are not there are listed as unsupported, with the reason. Steps, with the seconds that each may take:
#   tests       40  captured steps launched again give their own bits
#   ranges      30  debug mode PYKERNELS_CHECK_RANGES=1: index tensors out of range are errors
#   loop        75  mode graph-loop: the tokens of mode graph, bit for bit; both a step of Qwen2.5-7B
#   layer      250  native and the peers, Qwen2.5-7B: eager, dispatch, native, graph, graph-pdl; gaps and their causes;
#                   in three processes
#   launchers  180  an empty kernel by every launcher; what graphs cost; what each programmatic edge gains
#   call        90  the ladder of examples/call_block.py: a block of plain torch, a decoder layer of transformers
#
# Exit status: 0 where every step succeeded; the failed ones are named at the end.
export COLUMNS=${COLUMNS:-150}
. "$(dirname "$0")/gpu_steps.sh" || exit 2
steps=${LAUNCH_STEPS:-tests ranges loop layer launchers call}

ask_gpu
step tests 40 "$python" -m pytest -q -p no:cacheprovider tests/package/test_relaunch.py
step ranges 30 "$python" -m pytest -q -p no:cacheprovider tests/gpu/test_cuda_ranges.py
step "loop tests" 60 "$python" -m pytest -q -p no:cacheprovider tests/gpu/test_graph_loop.py
step "loop steps" 90 "$python" -m bench.step --model=qwen2.5-7b --ctx=2048 --json="$out/$gpu-graph-loop.json" \
    --arm=native/block:graph,native/block:graph-pdl,native/block:graph-loop,native/none:graph,native/none:graph-loop
layer=(-m bench.layer --model=qwen2.5-7b --mode=eager,dispatch,native,graph,graph-pdl --fusion=none)
step layer 100 "$python" "${layer[@]}" --backend=native,sdpa,sdpa-flash,sdpa-cudnn,compile \
    --json="$out/$gpu-launch-layer.json" --plot="$out/$gpu-launch-layer.png"
# Apart: a library that ends its process takes no other backend along.
step "layer fa" 60 "$python" "${layer[@]}" --backend=native,fa2,fa3 --json="$out/$gpu-launch-layer-fa.json"
step "layer others" 90 "$python" "${layer[@]}" --backend=native,flashinfer-tc,flex \
    --json="$out/$gpu-launch-layer-others.json"
step launchers 200 "$python" -m bench.launch --what=all --json="$out/$gpu-launchers.json" --plot="$out/$gpu-launchers.png"
step call 60 "$python" -m bench.call examples/call_block.py:block --json="$out/$gpu-call-block.json"
step call 60 "$python" -m bench.call examples/call_block.py:decoder --json="$out/$gpu-call-decoder.json"
name_failures
