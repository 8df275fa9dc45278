#!/usr/bin/env bash
# Photographs from nothing to tables: classifier, teacher, students, tuning, sweeps, peers.  `make gpu` runs it.
#
#   FEWSTEP_CIFAR10=cifar10-jpeg.parquet results/cifar10_jpeg.sh         on a GPU, about two hours
#   FEWSTEP_CIFAR10=... SIZE=tiny results/cifar10_jpeg.sh                every step on a CPU, in minutes, into runs/tiny
#
# Killed, it goes on where it was; UNTIL=teacher (or students, tuned, explore, table) ends it there.  What is shipped lies in
# bench/checkpoints/weights, the tables in results/cifar10_jpeg.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin} data=${FEWSTEP_CIFAR10:?names the parquet file of CIFAR-10 as JPEG copies}
fewstep() { "$bin/fewstep" "$@"; }

if [ "${SIZE:-full}" = tiny ]; then
  runs=${RUNS:-runs/tiny} on=(--device cpu)
  weights=$runs/weights results=$runs/results
  teacher=(--steps 2 --batch 2) student=(--steps 2 --batch 2 --samples 4 --points 1)
  methods=('time_shift(samples=2)' 'fitted(samples=2,calls=8,rounds=1)') budgets=2
  small=(--samples 4 --batch 4 --nfe 1,2 --metrics frechet_cifar10_jpeg --backend eager)
  explore=("${small[@]}" --set "tuned=$results/tuned"
    --solvers "ddim,time_shift,fitted,$weights/students/ect_cifar10_jpeg")
  table=("${small[@]}" --solvers dpmpp_2m --precision fp32 --set latency=null)
  speed=("${small[@]}" --solvers ddim --precision fp32,bf16 --set latency.max_batch=2)
  peers=(--samples 4 --batch 2 --nfe 2)
else
  runs=${RUNS:-runs/cifar10_jpeg} on=(--device cuda)
  weights=bench/checkpoints/weights results=results/cifar10_jpeg
  teacher=(--precision bf16 --steps "${TEACHER_STEPS:-12000}")
  student=(--precision bf16 --steps "${STUDENT_STEPS:-3000}" --samples 2000 --points 6)
  methods=(dpm_solver_v3 dc_solver time_shift usf autodiffusion fitted) budgets=4,5,6,8,10
  explore=(--batch 1000 --keep moments) table=(--batch 1000 --keep moments) speed=(--batch 1000 --keep moments)
  peers=(--samples 2000 --batch 1000 --nfe 5,10,20)
fi
until=${UNTIL:-}
here() { if [ "$1" = "$until" ]; then echo "stopped behind $1, as UNTIL says"; exit; fi; }

ship() {  # from a folder of a training to one of the package, all but its state
  mkdir -p "$2"
  for file in "$1"/{model*.safetensors,card.json,README.md,curve.png}; do
    if [ -f "$file" ]; then cp "$file" "$2/"; fi
  done
}

features=bench/checkpoints/weights/cifar10_jpeg_features
if [ ! -f "$features/train.npz" ]; then
  fewstep train cifar10_jpeg_features --precision bf16 --out "$runs/features" "${on[@]}"
  ship "$runs/features" "$features"
  fewstep reference "$data(split=train)" --features cifar10_jpeg --name "CIFAR-10 (JPEG copy) train" \
    --out "$features/train.npz" "${on[@]}"
fi

if [ ! -f "$weights/cifar10_jpeg/card.json" ]; then
  fewstep train cifar10_jpeg --out "$runs/teacher" "${teacher[@]}" "${on[@]}"
  ship "$runs/teacher" "$weights/cifar10_jpeg"
fi
here teacher

distil() {  # a student's name, its method, further options
  local shipped="$weights/students/$1_cifar10_jpeg"
  if [ ! -f "$shipped/card.json" ]; then
    fewstep distill "$2" --teacher "$weights/cifar10_jpeg" --out "$runs/$1" "${student[@]}" "${on[@]}" "${@:3}"
    ship "$runs/$1" "$shipped"
  fi
}
distil ect ect --lr 2e-4
distil lcm 'lcm(guidance=1)' --lr 2e-4
distil dmd2_1step 'dmd2(student_rate=0.2)' --lr 2e-4
distil dmd2_4step 'dmd2(steps=4,ttur=3,student_rate=0.2)' --lr 2e-4
here students

for method in "${methods[@]}"; do  # half of the classes, as on digits; each budget once
  fewstep tune "$method" --checkpoint "$weights/cifar10_jpeg" --classes 0,1,2,3,4 --nfe "$budgets" \
    --out "$results/tuned" "${on[@]}"
done
here tuned

sweep() {
  fewstep sweep "results/cifar10_jpeg-$1.yaml" --checkpoint "$weights/cifar10_jpeg" --out "$results/$1" "${on[@]}" "${@:2}"
}
sweep explore "${explore[@]}"
here explore
sweep table "${table[@]}"
here table
sweep speed "${speed[@]}"
"$bin/python" results/cifar10_jpeg/peers.py "$weights/cifar10_jpeg" --out "$results/peers" "${peers[@]}" "${on[@]}"
fewstep report "$results/explore" "$results/table" "$results/speed" --html --out "$results/report.html"
