"""Trains a causal language model of any family on text that is on any machine with Python.

`corpus` finds the text, `tokenizer` learns its byte-level BPE, `data` packs batches, `step` states what `optimizer`
does with one on a mesh, `loop` repeats it, `checkpoint` makes a kill harmless, `form` makes a checkpoint any mesh's,
`evaluate` counts bits per byte.
"""

from flexjax.train.loop import Trainer as Trainer
from flexjax.train.loop import is_first as is_first
from flexjax.train.loop import read_log as read_log
from flexjax.train.optimizer import OptimizerConfig as OptimizerConfig
from flexjax.train.plot import plot_loss as plot_loss
from flexjax.train.step import LoopConfig as LoopConfig
from flexjax.train.step import TrainProgram as TrainProgram
