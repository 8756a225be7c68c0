#!/usr/bin/env bash
# Makes what the study closing_the_gap serves, and the texts that it asks for.
#
#   closing_the_gap.sh DENSE CONTINUED MOE CALIBRATION HELD_OUT [OUT]
#
# Checkpoints are Composer's or Hugging Face's, texts are MDS folders of tokens
# or text files: those that shrinking may look at, and held-out ones. What is
# there is not made again.
set -euo pipefail

[ $# -ge 5 ] || { sed -n '2,8p' "$0"; exit 2; }
dense=$1 continued=$2 moe=$3 calibration=$4 held_out=$5
out=${6:-runs/closing_the_gap}
bin=${BIN:-.venv/bin}
mkdir -p "$out"

export_model() {  # CHECKPOINT NAME
    [ -d "$out/$2" ] || "$bin/foundry-upcycle" export-hf "$1" "$out/$2"
}

shrink() {  # NAME OPTION...
    [ -f "$out/$1.pt" ] ||
        "$bin/foundry-upcycle" shrink "$moe" "$out/$1.pt" "${@:2}"
    export_model "$out/$1.pt" "$1"
}

tokens() {  # TEXTS NAME
    [ -f "$out/$2.jsonl" ] ||
        "$bin/python" -m foundry_upcycle.data.token_lines "$moe" "$1" \
            "$out/$2.jsonl"
}

export_model "$dense" dense
export_model "$continued" continued
export_model "$moe" moe
statistics=$out/calibration.json
[ -f "$statistics" ] ||
    "$bin/foundry-upcycle" calibrate "$moe" "$calibration" "$statistics"
shrink experts_4 --experts 4 --by load --calibration "$statistics"
shrink merged_experts_4 --experts 4 --by merge --calibration "$statistics"
shrink mean --dense mean
shrink weighted --dense weighted --calibration "$statistics"
shrink concat_2 --dense concat --keep 2 --by norm --calibration "$statistics"
tokens "$calibration" prompts
tokens "$held_out" held_out
