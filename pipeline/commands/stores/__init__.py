"""Commands that read, check or fill logit stores: verify, import-logits."""
