"""Transfer: where a network starts from (a release, a run, a checkpoint, a packaged backbone), and how it goes on.

base.py           Base: an encoder's config, weights and spec, kept by the digest of its weights
stored.py         a base from a folder with weights.safetensors, spec.json and experiment.yaml
pretrained.py     bases out of installed packages; hugging_face.py out of Hugging Face's folders
backbones.py      the encoders that those are
bridge.py         from a dataset's inputs to those that an encoder was trained on
finetuned.py      Finetuned: the family that learns a new task on an encoder
methods.py        which part of the encoder learns, and when; adapters.py: small parts beside it that learn instead
order.py          from what the user says to the experiment, and to its control
evidence.py       what a start was worth: gains with intervals; forgetting.py: what it cost of the old task
table.py          what of a base was kept, and what is new
"""
