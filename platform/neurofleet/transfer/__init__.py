"""Transfer: where a network starts from: a release, a run, a checkpoint, a packaged backbone, and how it goes on learning.

base.py         Base: an encoder's config, weights and spec, kept by the digest of its weights
stored.py       a base from a folder with weights.safetensors, spec.json and experiment.yaml
pretrained.py   bases out of installed packages and Hugging Face folders
backbones.py    the encoders that those are
bridge.py       from a dataset's inputs to those that an encoder was trained on
finetuned.py    Finetuned: the family that learns a new task on an encoder
evidence.py     what a start was worth: gains with intervals, forgetting
"""
