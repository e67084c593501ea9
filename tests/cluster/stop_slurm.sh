#!/bin/bash
# stop_slurm.sh DIR: end what start_slurm.sh DIR started.
dir=$1
export SLURM_CONF=$dir/slurm.conf
scancel --user="$(id -un)" 2>/dev/null
for _ in $(seq 30); do
    [ -n "$(squeue --noheader 2>/dev/null)" ] || break
    sleep 1
done
pids=()
for file in "$dir"/slurmd-*.pid "$dir"/slurmctld.pid "$dir"/munge/pid; do
    [ ! -s "$file" ] || pids+=("$(cat "$file")")
done
kill "${pids[@]}" 2>/dev/null
for _ in $(seq 10); do
    kill -0 "${pids[@]}" 2>/dev/null || break
    sleep 1
done
kill -KILL "${pids[@]}" 2>/dev/null
[ ! -s "$dir/socket" ] || rm -rf "$(cat "$dir/socket")"
