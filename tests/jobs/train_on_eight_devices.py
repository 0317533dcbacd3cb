"""Runs the train job in each WORKDIR, alone or as one of several processes: run by test_train.py, `… WORKDIR …`."""

import dataclasses
import os
import sys
from pathlib import Path

from flexjax.config import from_config_dict
from flexjax.config_file import load, split
from flexjax.data import corpus
from flexjax.data.corpus import Document
from flexjax.hardware import distributed
from flexjax.hardware.mesh import MeshConfig
from flexjax.jobs import train

if distributed.ADDRESS in os.environ:
    distributed.join()

documents = [Document(p.name, p.read_text()) for p in sorted(Path(corpus.__file__).parent.glob("*.py"))]
corpus.train_documents = lambda: documents
smoke = from_config_dict(train.Config, split(load("configs/train/smoke.py"))[1])
loop = dataclasses.replace(smoke.loop, steps=4, checkpoint_every=2, log_every=1, precision="float32")
optimizer = dataclasses.replace(smoke.optimizer, warmup_steps=1)
mesh = MeshConfig(fsdp=4, tensor=2)
for workdir in sys.argv[1:]:
    train.run(dataclasses.replace(smoke, vocab_size=300, loop=loop, optimizer=optimizer, mesh=mesh), Path(workdir))
