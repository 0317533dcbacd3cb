"""Short causal convolution: each channel mixed with its last few inputs, as state-space layers do before they scan."""

from flexjax.kernels.short_convolution.api import short_convolution as short_convolution
from flexjax.kernels.short_convolution.api import short_convolution_dense as short_convolution_dense
