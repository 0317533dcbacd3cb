"""Top-k, top-p and min-p of sampling: the least logit of each row that is kept."""

from flexjax.kernels.sample_top.api import sample_top as sample_top
