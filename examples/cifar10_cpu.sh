#!/usr/bin/env bash
# The four commands on CIFAR-10-LT at ratio 100 and two baselines, on a CPU, in a new folder. SAUKIT_DATA names the folder that holds
# cifar-10-batches-py. About an hour on two cores.
set -euo pipefail

saukit make-lt --dataset cifar10 --imb 100
saukit synth --per-class-target 5000
saukit train
saukit eval --split few

saukit train --method ce --no-synthetic
saukit train --method balanced-softmax --no-synthetic
for run in sau+synth ce balanced-softmax; do
    saukit eval --run "$run"
done
