"""Kernels on the chip that is here: their values beside the formula, their times beside limits and other libraries."""

from flexjax.check.apart import Apart as Apart
from flexjax.check.apart import Failed as Failed
from flexjax.check.apart import TookTooLong as TookTooLong
from flexjax.check.plan import BODY as BODY
from flexjax.check.plan import PARTS as PARTS
from flexjax.check.plan import Goal as Goal
from flexjax.check.plan import Item as Item
from flexjax.check.plan import gpu_ops as gpu_ops
from flexjax.check.plan import plan as plan
from flexjax.check.rows import Machine as Machine
from flexjax.check.rows import Outcome as Outcome
from flexjax.check.rows import Row as Row
from flexjax.check.rows import Sheet as Sheet
from flexjax.check.work import do as do
from flexjax.check.work import healthy as healthy
from flexjax.check.work import machine as machine
