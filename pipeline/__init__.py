"""The stages of the work (dump, ensemble, ...) and what they share: manifest, store, scores."""
