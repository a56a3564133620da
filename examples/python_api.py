"""The four stages from Python, on digits with small budgets: python examples/python_api.py [WORKSPACE]."""

from __future__ import annotations

import sys

import torch

import saukit


def main(workspace: str) -> None:
    split = saukit.make_lt(saukit.SplitConfig(dataset="digits", imb=50), workspace)
    print("training images a class:", split.summary["counts"])

    few = saukit.SynthConfig(per_class_target=30, train_steps=40, sampler_steps=4, preflight=0, audit=False)
    print("synthetic images:", saukit.synth(few, workspace, verbose=True).summary["images"])

    for method, synthetic in (("balanced-softmax", False), ("sau", True)):
        config = saukit.TrainConfig(method=method, synthetic=synthetic, backbone="convnet-small", steps=60)
        run = saukit.train(config, workspace, verbose=True)
        result = saukit.evaluate(saukit.EvalConfig(run=run.name), workspace)
        print(f"{run.name}: balanced accuracy {result.document['balanced_accuracy']:.3f}")

    classifier = saukit.load_classifier(run.folder)
    blank = torch.zeros(1, 3, *classifier.image_size)
    print("a blank image is predicted as", classifier.classes[int(classifier(blank).argmax())])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "saukit_api")
