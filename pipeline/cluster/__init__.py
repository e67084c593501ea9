"""Scripts that run commands on Slurm, over ssh and on Kubernetes."""
