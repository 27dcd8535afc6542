#!/usr/bin/env bash
# The study on this machine's GPU: whole decode steps into one folder, and a report of it. A fresh process a cell and a
# session: 27 of them.
#
#   bash bench/gpu_study.sh FOLDER PYTHON
#
# step    the headline, one model and context with every arm there is                  FOLDER/step.json, .md, .png
# sweep   the matrix models x contexts at batch 1, and one model's row at batch 4      FOLDER/cells/*.json
# ab      pairs of arms over the same fresh processes, each with a verdict             FOLDER/ab-A-B.json
# report  tables, pictures and one page                                                FOLDER/report/report.html
#
# Killed and started again, the matrix goes on with the first cell that is missing and the pairs with the first session
# (they are kept in FOLDER/.sessions); the headline is measured anew. What there is to set, by environment variables:
#
#   PARTS="step sweep ab report"
#   MODEL=qwen2.5-7b CTX=2048      of the headline and of the pairs
#   MODELS=study CONTEXTS=2048,4096,8192,16384 BATCHES=1      the matrix; study: the paper's three models
#   ROW_MODEL=qwen2.5-7b ROW_BATCHES=4                        the row
#   ARMS=native/block:eager,native/block:graph,native/block:graph-pdl,sdpa:eager,sdpa:graph      of every cell
#   PAIRS="sdpa:eager=sdpa:graph ..." SESSIONS=10      a=b, more between spaces; what is reported is a / b
#   LIMIT_S=600   seconds that a cell or a session may take
#   FLAGS=""      more flags for bench.step, bench.sweep and bench.ab alike, such as --layers=4
#   PRICES=""     flags for the report, such as --price=H200=3.99
#
# On an H200 with 16 cores (2026-11-24): step 40 s, a cell 20 s, a session of seven arms about 18 s; all of it some ten
# minutes.
#
# Exit status: 0 where every part succeeded; the failed ones are named at the end.
set -- "${1:-results}" "${@:2}"
. "$(dirname "$0")/gpu_steps.sh" || exit 2
steps=${PARTS:-step sweep ab report}
limit_s=${LIMIT_S:-600} model=${MODEL:-qwen2.5-7b} ctx=${CTX:-2048} contexts=${CONTEXTS:-2048,4096,8192,16384}
arms=${ARMS:-native/block:eager,native/block:graph,native/block:graph-pdl,sdpa:eager,sdpa:graph}
# Graphs on against off, in torch and here; PDL launches; fusion without graphs and in them; fusion alone
# against graphs alone; and the best of either side.
read -r -a pairs <<< "${PAIRS:-sdpa:eager=sdpa:graph native/block:eager=native/block:graph \
    native/block:graph=native/block:graph-pdl native/none:eager=native/block:eager \
    native/none:graph=native/block:graph \
    native/none:graph=native/block:eager sdpa:graph=native/block:graph-pdl}"
read -r -a flags <<< "${FLAGS:-}"
read -r -a prices <<< "${PRICES:-}"

step step 0 "$python" -m bench.step --model="$model" --ctx="$ctx" "${flags[@]}" \
    --json="$out/step.json" --md="$out/step.md" --plot="$out/step.png"
step sweep 0 "$python" -m bench.sweep --out="$out/cells" --model="${MODELS:-study}" --ctx="$contexts" \
    --batch="${BATCHES:-1}" --arm="$arms" --limit-s="$limit_s" "${flags[@]}"
step "sweep row" 0 "$python" -m bench.sweep --out="$out/cells" --model="${ROW_MODEL:-qwen2.5-7b}" --ctx="$contexts" \
    --batch="${ROW_BATCHES:-4}" --arm="$arms" --limit-s="$limit_s" "${flags[@]}"
both=$(printf '%s\n' "${pairs[@]//=/$'\n'}" | awk '!seen[$0]++' | paste -sd,)
for pair in "${pairs[@]}"; do
    step "ab $pair" 0 "$python" -m bench.ab --a="${pair%%=*}" --b="${pair#*=}" --arms="$both" --keep="$out/.sessions" \
        --model="$model" --ctx="$ctx" --sessions="${SESSIONS:-10}" --limit-s="$limit_s" "${flags[@]}" \
        --json="$out/ab-${pair//[\/:=]/-}.json"
done
step report 0 "$python" -m bench.report "$out" "${prices[@]}"
name_failures
