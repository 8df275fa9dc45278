#!/bin/sh
# What the methods that learn were taught, on half of each checkpoint's classes, and the runs with it.
set -e
here=results/tuning
for pair in gmm:0,1 digits:0,1,2,3,4; do
  for method in dpm_solver_v3 dc_solver time_shift usf autodiffusion fitted; do
    fewstep tune $method --checkpoint ${pair%%:*} --nfe 4,5,6,8,10 --guidance 1,4 --classes ${pair#*:} --out $here/learned
  done
done
for run in all unseen guidance1 guidance4; do
  for checkpoint in gmm digits; do
    fewstep sweep $here/$run-$checkpoint.yaml --out $here/$run-$checkpoint
  done
done
