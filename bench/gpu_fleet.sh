#!/usr/bin/env bash
# Two GPUs of one machine: shards on each, one after the other and at once; the same cells by Ray, one a node and packed;
# launches on both at once; a worker killed; the GPU tests on the second.
#
#   bash bench/gpu_fleet.sh FOLDER PYTHON                # the defaults: bench/results, python3
#   FLEET_STEPS="apart at-once null" bash bench/gpu_fleet.sh FOLDER
#
# Steps, with the seconds that each took on two H200 of one machine with 32 CPUs (tests, pack and report: predicted):
#   null      17  null launches: on each GPU alone, on both from two threads and from two processes   FOLDER/null.json
#   apart     90  the matrix in two shards, one on cuda:0, then one on cuda:1                  FOLDER/apart/*.json
#   at-once   53  the same shards on the same GPUs at the same time                            FOLDER/at-once/*.json
#   tests     60  the tests that need a GPU, on cuda:1
#   ray      102  the matrix by Ray (launchtax[ray]), one cell a node at a time                FOLDER/ray/*.json
#   pack      45  by Ray, one cell a GPU; a worker is killed in its first cell                 FOLDER/pack/*.json
#   report     5  the folders merged: what cells at once cost, by mode; controls               FOLDER/report/report.md
#
# The steps ray and pack need ray importable by PYTHON; report needs the folders of the others alone, on any machine.
# Each step has a limit, and none ends another.
#
# What there is to set, by environment variables: MODELS, CONTEXTS, ARMS, STEPS (of a cell), TESTS (pytest's -k).
# Exit status: 0 where every step succeeded; the failed ones are named at the end.
export COLUMNS=${COLUMNS:-150}
. "$(dirname "$0")/gpu_steps.sh" || exit 2
steps=${FLEET_STEPS:-null apart at-once tests ray pack report}
arms=${ARMS:-native/block:eager,native/block:native,native/block:graph,native/block:graph-pdl,sdpa:graph}
matrix=(--model="${MODELS:-llama-3.1-8b,qwen2.5-7b}" --ctx="${CONTEXTS:-2048,8192}" --batch=1 --arm="$arms"
        --steps="${STEPS:-30}" --limit-s=120)

shard() {  # folder, i; its device is cuda:i-1
    "$python" -m bench.sweep --out="$out/$1" "${matrix[@]}" --shard="$2/2" --device="cuda:$(($2 - 1))"
}

apart() {
    shard apart 1
    local first=$?
    shard apart 2 && return "$first"
}

at_once() {
    shard at-once 1 & local first=$!
    shard at-once 2
    local second=$?
    wait "$first" && return "$second"
}

step null 60 "$python" -m bench.fleet.null_launches --json="$out/null.json" cuda:0 cuda:1
step apart 240 apart
step at-once 160 at_once
step tests 120 env LAUNCHTAX_TEST_GPU=1 "$python" -m pytest -q -p no:cacheprovider tests/gpu -k "${TESTS:-not plugins}"
over_ray() {  # folder, more flags
    "$python" -m bench.sweep --ray --out="$out/$1" "${matrix[@]}" --device=cuda "${@:2}"
}

below() {  # a process, and whether it descends from another
    local pid=$1
    while [[ $pid && $pid != 1 ]]; do
        pid=$(awk '/^PPid/ {print $2}' "/proc/$pid/status" 2>/dev/null)
        [[ $pid == "$2" ]] && return 0
    done
    return 1
}

# The cell in hand is measured again: all of them are there at the end.
pack() {
    local sweep worker= one
    over_ray pack --pack & sweep=$!
    while kill -0 "$sweep" 2>/dev/null && [[ ! $worker ]]; do
        sleep 0.5
        for one in $(pgrep -f '^ray::measure_cell'); do
            below "$one" "$sweep" && worker=$one && break
        done
    done
    if [[ $worker ]]; then
        sleep 5
        kill -9 "$worker" && echo "killed worker $worker"
    fi
    wait "$sweep"
}

step ray 240 over_ray ray
step pack 160 pack
step report 60 "$python" -m bench.report "$out/apart" "$out/at-once" "$out/ray" "$out/pack" --out="$out/report" --no-svg
name_failures
