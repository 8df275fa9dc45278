#!/usr/bin/env bash
# Trains the shipped students of digits again, two at a time, a thread each; then they are where the package has them.
# Killed, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=students shipped=bench/checkpoints/weights/students
export OMP_NUM_THREADS=1

train() { .venv/bin/fewstep distill "$2" --out "$runs/$1" "${@:3}"; }
ship() {
  mkdir -p "$shipped/$2"
  for file in model.safetensors card.json README.md curve.png; do
    if [ -f "$1/$file" ]; then cp "$1/$file" "$shipped/$2/"; fi
  done
}

(train cd cd; train ect ect; train reflow reflow; train progressive progressive --points 25) &
train lcm 'lcm(guidance=1)'
train dmd2_1step 'dmd2(student_rate=0.2)'
train dmd2_4step 'dmd2(steps=4,ttur=3,student_rate=0.2)' --steps 1200 --lr 1e-3
wait

for name in cd ect lcm reflow; do ship "$runs/$name" "${name}_digits"; done
for steps in 1 4; do ship "$runs/dmd2_${steps}step" "dmd2_digits_${steps}step"; done
ship "$runs/progressive" progressive_digits_1step
for steps in 2 4; do ship "$runs/progressive/${steps}step" "progressive_digits_${steps}step"; done
