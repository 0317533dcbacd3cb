"""The engine in several processes: replicas side by side, and one model over many hosts in lockstep."""

from flexjax.engine.processes.crew import Load as Load
from flexjax.engine.processes.lockstep import Followers as Followers
from flexjax.engine.processes.post import Post as Post
from flexjax.engine.processes.replicas import Replicas as Replicas
from flexjax.engine.processes.replicas import load_engine as load_engine
