"""Model families; each is found through the entry-point group `flexjax.models`."""
