"""Top-k, top-p and min-p: the contract, and which body serves it."""

from jaxtyping import Array, Float, Int

from flexjax.kernels import registry
from flexjax.kernels.sample_top import base, pallas_tpu, xla

OP = "sample_top"
BODIES = {
    "base": base.sample_top,
    "xla": xla.sample_top,
    "pallas_tpu": pallas_tpu.sample_top,
    "triton_gpu": registry.on_demand("flexjax.kernels.sample_top.triton_gpu", OP, package="jax_triton", extra="cuda"),
}
# `base` sorts, which takes long on every platform.
ORDER = {"tpu": ("pallas_tpu", "xla"), "gpu": ("triton_gpu", "xla")}
ANYWHERE = ("xla",)


def sample_top(
    logits: Float[Array, "B V"],
    top_k: Int[Array, "B"],
    top_p: Float[Array, "B"],
    min_p: Float[Array, "B"],
    *,
    body: str | None = None,
) -> Float[Array, "B"]:
    """The least logit of each row that sampling keeps; those equal to it are kept too. It is the largest of

        kth = the top_k-th largest logit                                              # of all where top_k is 0
        the largest logit t at which softmax(logits of at least kth)[logits >= t] sum to top_p     # where top_p < 1
        max(logits) + log(min_p)

    Args:
      logits: float32; -inf for what may not come.
      top_k: 0, or the number to keep at least.
      top_p: in (0, 1].
      min_p: in [0, 1], of the largest probability.
      body: exactly this one of `BODIES`. By default the environment's, else the first of the platform's order
        that can serve; `flexjax.kernels.bodies_used` tells which did and why.

    Raises:
      ValueError: shapes or dtypes that do not fit each other.
      NotImplementedError: no body, or not the one asked for, serves the call.
    """
    rows = (logits.shape[0],)
    if logits.ndim != 2 or not rows == top_k.shape == top_p.shape == min_p.shape or logits.dtype != "float32":
        raise ValueError(
            "logits are float32 [B, V], and top_k, top_p and min_p [B]; got "
            f"{logits.dtype} {logits.shape}, {top_k.shape}, {top_p.shape} and {min_p.shape}."
        )
    order = ORDER.get(registry.platform(), ANYWHERE)
    return registry.serve(OP, BODIES, order, body, logits, top_k, top_p, min_p)
