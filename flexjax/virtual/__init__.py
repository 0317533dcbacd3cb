"""Serving and training steps on chips that are not here: do they fit, what do they move, how long must they take."""

from flexjax.virtual.budget import Budget as Budget
from flexjax.virtual.steps import StepReport as StepReport
from flexjax.virtual.steps import compile_steps as compile_steps
from flexjax.virtual.target import Target as Target
from flexjax.virtual.target import abstract_model as abstract_model
from flexjax.virtual.target import program_for as program_for
from flexjax.virtual.training import Training as Training
from flexjax.virtual.training import TrainReport as TrainReport
from flexjax.virtual.training import compile_training as compile_training
from flexjax.virtual.training import ways_to_train as ways_to_train
from flexjax.virtual.ways import ways_to_fit as ways_to_fit
