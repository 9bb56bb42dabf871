
# Here, on the first node, runs the coordinator; when Slurm starts the job again, it goes on
# with the run. A port of 0 is one that is free.
begun=$(mktemp)
"$coordinator" serve "$config" "${sets[@]}" --run-dir "$run" --resume=auto --workers "$SLURM_JOB_NUM_NODES" \
    --listen "[::]:0" &
serving=$!

# Near the end of its time, or when it is pre-empted or cancelled, the run is saved and stops.
again=
stop() { kill -TERM "$serving" 2>/dev/null; }
trap 'again=1; stop' USR1
trap stop TERM INT

# The coordinator says where it is, and how to be let in.
until [ "$run/keys/join" -nt "$begun" ] || ! kill -0 "$serving" 2>/dev/null; do sleep 0.2; done
rm -f "$begun"

# One worker on each node. One that fails is started again, as long as there is a coordinator.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-}
[ -n "$SRUN_CPUS_PER_TASK" ] || unset SRUN_CPUS_PER_TASK
if kill -0 "$serving" 2>/dev/null; then
    srun --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 bash -c '
        worker=$1 run=$2 && shift 2
        trap "" TERM INT   # The worker ends by itself.
        while [ -e "$run/keys/join" ]; do
            # The addresses of the coordinator, then the token.
            read -ra line < "$run/keys/join"
            "$worker" join "${line[@]::${#line[@]}-1}" --wait 10m --token-file <(printf "%s\n" "${line[@]: -1}") "$@"
            status=$?
            # 0 is the end of the run; 2 is a wrong command line, which another start does not mend.
            case $status in 0 | 2) exit $status ;; esac
            sleep 5
        done' worker "$worker" "$run" "${data[@]}" &
    workers=$!
fi

# A signal ends `wait`, and not what it waits for.
while kill -0 "$serving" 2>/dev/null; do
    wait "$serving"
    status=$?
done
if [ -n "${workers:-}" ]; then
    [ "$status" = 0 ] || kill "$workers" 2>/dev/null
    wait "$workers"
fi
if [ -n "$again" ] && [ "$status" = 0 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
