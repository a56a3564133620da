#!/usr/bin/env bash
# All benchmarks on a GPU, then a generator and the long runs. Every stage writes its own JSON and is passed over if that is there.
#
#     ./gpu.sh WORKSPACE OUT [SECONDS]
#
# WORKSPACE: a workspace with a split, or a tar archive of one. SECONDS: interrupt a training stage after that time, with
# a checkpoint; the script then ends with code 75, and the same command goes on from there. PYTHON names the interpreter,
# SYNTH_STEPS the training steps of the generator.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 WORKSPACE OUT [SECONDS]" >&2
    exit 2
fi
workspace=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
seconds=${3:-0} # to timeout, 0 is no limit
python=${PYTHON:-python3}
saukit=("$python" -c "from saukit.cli.main import run; run()")
cd "$(dirname "$0")"

if [ -f "$workspace" ]; then
    archive=$workspace
    workspace=$out/workspace
    if [ ! -d "$workspace" ]; then
        rm -rf "$out/unpacking"
        mkdir "$out/unpacking"
        tar -xf "$archive" -C "$out/unpacking"
        # The archive may hold the workspace's contents or its folder.
        split=$(find "$out/unpacking" -maxdepth 2 -type d -name split -print -quit)
        mv "$(dirname "$split")" "$workspace"
        rm -rf "$out/unpacking"
    fi
fi

benchmark() { # NAME [OPTION]...
    local name=$1
    shift
    [ -f "$out/$name.json" ] && return
    echo "== $name"
    "$python" "$name.py" --device cuda --out "$out/$name.json" "$@"
}

train() { # NAME [OPTION]...
    local name=$1 resume=() code=0
    shift
    [ -f "$out/$name.json" ] && return
    echo "== $name"
    [ -d "$workspace/runs/$name" ] && resume=(--resume)
    timeout -s INT "$seconds" "${saukit[@]}" train -w "$workspace" --name "$name" --device cuda \
        --backbone resnet32-w64 --batch-size 128 --compile --cuda-graph "$@" "${resume[@]}" || code=$?
    if [ "$code" -eq 124 ]; then
        echo "$name is not done yet: run the same command again"
        exit 75
    fi
    [ "$code" -eq 0 ] || exit "$code"
    cp "$workspace/runs/$name/manifest.json" "$out/$name-manifest.json"
    cp "$workspace/runs/$name/metrics.jsonl" "$out/$name-metrics.jsonl"
    "${saukit[@]}" eval -w "$workspace" --run "$name" --device cuda --json >"$out/.$name.json"
    mv "$out/.$name.json" "$out/$name.json" # last, and whole: it says that the stage is done
}

synth() { # the base model and 5,000 images a class; its manifest tells the times of training and sampling
    local resume=() code=0
    [ -f "$out/synth.json" ] && return
    echo "== synth"
    [ -d "$workspace/synth" ] && resume=(--resume)
    timeout -s INT "$seconds" "${saukit[@]}" synth -w "$workspace" --device cuda --preset base --per-class-target 5000 \
        --train-steps "${SYNTH_STEPS:-10000}" --no-audit --preflight 0 "${resume[@]}" || code=$?
    if [ "$code" -eq 124 ]; then
        echo "synth is not done yet: run the same command again"
        exit 75
    fi
    [ "$code" -eq 0 ] || exit "$code"
    cp "$workspace/synth/samples.png" "$out/synth-samples.png"
    cp "$workspace/synth/manifest.json" "$out/synth.json"
}

benchmark feed
benchmark step
benchmark end_to_end
benchmark scaling
benchmark sampling
synth
# 200 epochs each, the last one kept: with synthetic images an epoch is longer, and the manifests tell the steps.
train ce --preset paper --method ce --no-synthetic
train balanced-softmax --preset paper --method balanced-softmax --no-synthetic
train sau --preset paper --method sau --no-synthetic
train sau+synth --preset paper --method sau --synthetic
train sau+synth-prior1-finish0.5 --preset paper --method sau --synthetic --prior-correction 1 --real-finish 0.5
train fast --preset fast
