#!/usr/bin/env bash
# Decode steps at a robot's rate on a GPU: latency from the due time to the token on the host, its tail, and energy.
# Result documents, tables and pictures go to the folder given.
#
#   bash bench/gpu_rate.sh FOLDER PYTHON                 # the defaults: bench/results, python3
#   RATE_STEPS="check rate" bash bench/gpu_rate.sh FOLDER
#
# Steps, with the seconds that each takes (predicted, from the seconds of its blocks):
#   check   70  two layers: does every arm run, how late is the timer, how often does the energy counter move and is it
#               power x time; one arm under two names
#   rate   465  Qwen2.5-7B, six arms at 0, 10, 30 and 100 Hz, each as long as its p99 needs (368 steps; of 10 Hz 38 s)
#   load   190  four of them at 30 Hz: alone, beside a busy thread a core, and beside copies to the GPU
#
# Exit status: 0 where every step succeeded; the failed ones are named at the end.
. "$(dirname "$0")/gpu_steps.sh" || exit 2
steps=${RATE_STEPS:-check rate load}
arms=sdpa:eager,native/block:eager,native/block:graph,native/block:graph-pdl

files() { printf -- '--json=%s --md=%s --plot=%s' "$out/$gpu-$1.json.gz" "$out/$gpu-$1.md" "$out/$gpu-$1.png"; }

ask_gpu
step check 150 "$python" -m bench.rate --model=qwen2.5-7b --layers=2 --hz=0,100 --seconds=1,4 --idle-s=0.2 \
    --arm=$arms,sdpa:graph,transformers:eager --aa=native/block:graph --json="$out/$gpu-rate-aa.json.gz"
step rate 560 "$python" -m bench.rate --model=qwen2.5-7b --hz=0,10,30,100 --seconds=4,38,13,4 --idle-s=0.4 $(files rate)
step load 260 "$python" -m bench.rate --model=qwen2.5-7b --hz=30 --seconds=13 --idle-s=0.2 --arm=$arms \
    --load=none,cpu:"$(nproc)",copy $(files rate-load)
name_failures
