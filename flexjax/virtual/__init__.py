"""The engine's steps on chips that are not here: do they fit, what do they move, how long must they take."""

from flexjax.virtual.budget import Budget as Budget
from flexjax.virtual.steps import StepReport as StepReport
from flexjax.virtual.steps import compile_steps as compile_steps
from flexjax.virtual.target import Target as Target
from flexjax.virtual.target import abstract_model as abstract_model
from flexjax.virtual.target import program_for as program_for
