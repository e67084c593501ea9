#!/bin/bash
# stop_slurm.sh DIR: end what start_slurm.sh DIR started.
dir=$1
export SLURM_CONF=$dir/slurm.conf
scancel --user="$(id -un)" 2>/dev/null
for file in "$dir"/slurmd-*.pid "$dir"/slurmctld.pid "$dir"/munge/pid; do
    [ ! -s "$file" ] || kill "$(cat "$file")" 2>/dev/null
done
[ ! -s "$dir/socket" ] || rm -rf "$(cat "$dir/socket")"
