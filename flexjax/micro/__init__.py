"""What this machine reaches: matrix products, memory, collectives, dispatch."""

from flexjax.micro.collectives import collectives as collectives
from flexjax.micro.dispatch import dispatch as dispatch
from flexjax.micro.limits import Limits as Limits
from flexjax.micro.limits import limits as limits
from flexjax.micro.limits import peaks as peaks
from flexjax.micro.matmul import matmuls as matmuls
from flexjax.micro.memory import bare_read as bare_read
from flexjax.micro.memory import memory as memory
from flexjax.micro.timing import Loop as Loop
from flexjax.micro.timing import Probe as Probe
from flexjax.micro.timing import Reading as Reading
from flexjax.micro.timing import measure as measure
