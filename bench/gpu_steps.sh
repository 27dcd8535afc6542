# What the gpu_*.sh scripts share; they source it with their own arguments, FOLDER and PYTHON:
#
#   out, python   where results go, made here; the interpreter
#   steps         which are wanted, their names between spaces; where it is not set, all
#   failed        what failed so far
set -u
out=${1:-bench/results}
python=${2:-python3}
mkdir -p "$out" || exit 2
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} COLUMNS=${COLUMNS:-120}
failed=()
unset steps

ask_gpu() {  # sets gpu, its name as file names have it, and capability, as in 9.0
    read -r gpu capability < <("$python" -c 'import torch
name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
print(name.lower().replace("nvidia ", "").split()[0], f"{major}.{minor}")') || exit 1
}

wanted() { [[ -z ${steps+set} || " $steps " == *" $1 "* ]]; }  # name

# A command, or a function of the script, in a process group of its own: after so many seconds that is asked to end
# (SIGTERM), which our drivers take as a Ctrl-C: they print and save what they have; 30 seconds later it is killed.
limited() {  # seconds, command
    local status group watch _
    set -m
    "${@:2}" & group=$!
    (sleep "$1"; kill -TERM -- "-$group"; sleep 30; kill -KILL -- "-$group") 2>/dev/null & watch=$!
    set +m
    wait "$group"
    status=$?
    for _ in {1..60}; do  # a function's shell ends before the drivers that it runs, which are saving
        kill -0 -- "-$group" 2>/dev/null || break
        sleep 0.5
    done
    kill -TERM -- "-$watch" 2>/dev/null
    wait "$watch" 2>/dev/null
    return "$status"
}

step() {  # name, whose first word, up to a space or comma, says whether it is wanted; seconds that it may take (0: any); command
    local name=$1 begin=$SECONDS limit=()
    wanted "${name%%[ ,]*}" || return 0
    (($2)) && limit=(limited "$2")
    echo "--- $name: ${*:3}"
    "${limit[@]}" "${@:3}" || failed+=("$name")
    echo "--- $name: $((SECONDS - begin)) s"
}

# Two built checkouts, `before` and this one, measure in turns, `rounds` times. The script that calls it defines `turn`:
# the checkout, the folder of its documents, the turn's number.
take_turns() {  # the names of both folders, below FOLDER
    local round folder
    folder=$(cd "$out" && pwd)
    for ((round = 1; round <= rounds; round++)); do
        turn "$before" "$folder/$1" "$round" && turn "$PWD" "$folder/$2" "$round" || return 1
    done
}

name_failures() {  # the end of a script: its exit status
    ((${#failed[@]})) || exit 0
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
}
