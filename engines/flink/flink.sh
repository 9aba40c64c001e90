#!/usr/bin/env bash
# A Flink 1.19 cluster with Beam's job server on this machine, from packages alone (needs Java 11 or 17, Maven, curl).
#
#   flink.sh local     Beam's job server with Flink inside it: one Java process
#   flink.sh cluster   a job manager, task managers, a job server that submits to them, and a pool of Python workers
#   flink.sh jars      only fetches the jars (152 MB, once)
#   flink.sh stop      ends all that it started, by process id
#
# The last line it prints is the job endpoint, for `beam-influence run --runner flink --job_endpoint`. What runs already
# is left running; task managers that have died are started again. Maven's own settings (~/.m2/settings.xml, MAVEN_ARGS)
# say where the jars come from.
#
# Settings, by environment variable:
#   FLINK_CACHE     where the jars are kept              (~/.cache/beam-influence/flink)
#   FLINK_RUN       process ids, logs and configuration  ($TMPDIR/beam-influence-flink-UID)
#   FLINK_PORTS     job,REST,RPC,pool                    (8099,8081,6123,50000)
#   FLINK_WORKERS   number of task managers              (2), each of 2 slots
#   FLINK_HEAP_MB   heap of a task manager for tasks     (1024)
#   FLINK_PYTHON    the Python that runs the workers     (python3)
#   FLINK_LOG       level of the logs                    (warn)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${FLINK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/beam-influence/flink}
run=${FLINK_RUN:-${TMPDIR:-/tmp}/beam-influence-flink-$(id -u)}
workers=${FLINK_WORKERS:-2}
heap=${FLINK_HEAP_MB:-1024}
python=${FLINK_PYTHON:-python3}
IFS=, read -r job_port rest_port rpc_port pool_port <<<"${FLINK_PORTS:-8099,8081,6123,50000}"
jars=$cache/jars-$(sha256sum "$here/pom.xml" | cut -c1-12)

say() { echo "[flink] $*" >&2; }

# Runs a command in a session of its own, so that an interrupt meant for the caller does not reach it.
start() {
  local name=$1
  shift
  setsid "$@" >"$run/$name.log" 2>&1 </dev/null &
  echo $! >"$run/$name.pid"
}

# A process that was killed stays in the table, as a zombie, until its parent asks for its status.
is_alive() {
  local state
  [[ -s $run/$1.pid ]] && state=$(ps -o stat= -p "$(cat "$run/$1.pid")") && [[ $state != Z* ]]
}

is_listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Waits until a command succeeds; ends all when a process that was started has died, or after two minutes.
wait_for() {
  local what=$1 file name
  shift
  for _ in $(seq 480); do
    "$@" && return 0
    for file in "$run"/*.pid; do
      name=$(basename "$file" .pid)
      is_alive "$name" || give_up "$name has ended while starting"
    done
    sleep 0.25
  done
  give_up "gave up waiting for $what"
}

give_up() {
  say "$1"
  tail -n 20 "$run"/*.log >&2
  stop
  exit 1
}

stop() {
  local file pid
  for file in "$run"/*.pid; do
    [[ -s $file ]] || continue
    kill "$(cat "$file")" 2>/dev/null || true
  done
  for file in "$run"/*.pid; do
    [[ -s $file ]] || continue
    pid=$(cat "$file")
    for _ in $(seq 40); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.25
    done
    kill -9 "$pid" 2>/dev/null || true
    rm -f "$file"
  done
}

# The lock is held by a subshell, so that the processes started later don't keep it.
fetch_jars() {
  mkdir -p "$cache"
  (
    flock 9
    [[ -e $jars/complete ]] || fetch_all_jars
  ) 9>"$cache/lock"
}

fetch_all_jars() {
  say "fetching the jars into $jars"
  local new
  new=$(mktemp -d "$cache/new.XXXXXX")
  mvn -q -B -f "$here/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$new/lib" >&2
  javac -d "$new/classes" "$here/HiddenJars.java"
  jar cf "$new/hidden-jars.jar" -C "$new/classes" HiddenJars.class # a jar: of a folder, a job could not be submitted
  touch "$new/complete"
  chmod 755 "$new"
  rm -rf "$jars"
  mv "$new" "$jars"
  say "$(find "$jars/lib" -name '*.jar' | wc -l) jars"
}

java_options() {
  local package
  for package in lang net io nio lang.reflect text time util util.concurrent util.concurrent.atomic util.concurrent.locks; do
    echo "--add-opens=java.base/java.$package=ALL-UNNAMED"
  done
  # Processes that live for minutes: starting fast is worth more than running fast.
  echo -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto
  echo "-Dorg.slf4j.simpleLogger.defaultLogLevel=${FLINK_LOG:-warn}" -Dorg.slf4j.simpleLogger.showDateTime=true
  echo -Dorg.slf4j.simpleLogger.log.org.apache.beam.runners.jobsubmission.JobServerDriver=info
}

# A task manager without Flink's own start script wants every figure of its memory spelled out. The graph of a run has
# some dozens of exchanges: with Flink's default of 64 MB for them it would not get its buffers.
write_configuration() {
  mkdir -p "$run/conf" "$run/io"
  cat >"$run/conf/config.yaml" <<YAML
jobmanager.rpc.address: localhost
jobmanager.rpc.port: $rpc_port
jobmanager.bind-host: localhost
jobmanager.memory.process.size: 1024m
taskmanager.bind-host: localhost
taskmanager.host: localhost
taskmanager.numberOfTaskSlots: 2
taskmanager.cpu.cores: 2.0
taskmanager.memory.framework.heap.size: 128m
taskmanager.memory.framework.off-heap.size: 128m
taskmanager.memory.task.heap.size: ${heap}m
taskmanager.memory.task.off-heap.size: 128m
taskmanager.memory.network.min: 512m
taskmanager.memory.network.max: 512m
taskmanager.memory.managed.size: 256m
taskmanager.memory.jvm-metaspace.size: 256m
taskmanager.memory.jvm-overhead.min: 192m
taskmanager.memory.jvm-overhead.max: 192m
rest.address: localhost
rest.bind-address: localhost
rest.port: $rest_port
io.tmp.dirs: $run/io
parallelism.default: $((2 * workers))
# Without this one task manager does all the work of a small job.
cluster.evenly-spread-out-slots: true
# A task manager that has died is noticed after 10 s; attempts before fail.
heartbeat.interval: 2000
heartbeat.timeout: 10000
# What fails is tried again after 2, 4, 8, 16 and 32 s. A Python worker that has died is replaced after at most 30 s
# (--environment_cache_millis); attempts before fail.
restart-strategy.type: exponential-delay
restart-strategy.exponential-delay.initial-backoff: 2 s
restart-strategy.exponential-delay.backoff-multiplier: 2.0
restart-strategy.exponential-delay.max-backoff: 32 s
restart-strategy.exponential-delay.jitter-factor: 0.0
restart-strategy.exponential-delay.attempts-before-reset-backoff: 5
classloader.resolve-order: parent-first
YAML
  export FLINK_CONF_DIR=$run/conf
}

has_task_managers() { curl -fs "http://localhost:$rest_port/overview" 2>/dev/null | grep -q "\"taskmanagers\":$workers,"; }

start_task_manager() {
  start "$1" java "-Xmx$((heap + 128))m" -XX:MaxDirectMemorySize=768m "${options[@]}" -cp "$jars/lib/*" \
    org.apache.flink.runtime.taskexecutor.TaskManagerRunner --configDir "$run/conf"
}

mode=${1:-}
case $mode in
  stop)
    stop
    exit
    ;;
  jars)
    fetch_jars
    exit
    ;;
  local | cluster) ;;
  *)
    sed -n '2,/^set -e/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
    exit 2
    ;;
esac

start_missing_task_managers() {
  local number
  for number in $(seq "$workers"); do
    is_alive "task-manager-$number" || start_task_manager "task-manager-$number"
  done
}

mkdir -p "$run"
read -r -d '' -a options < <(java_options) || true
if is_alive job-server && is_listening "$job_port"; then
  if is_alive job-manager; then
    start_missing_task_managers
    wait_for "$workers task managers" has_task_managers
  fi
  say "running already"
  echo "localhost:$job_port"
  exit
fi
fetch_jars
stop
driver=(org.apache.beam.runners.flink.FlinkJobServerDriver --job-host=localhost "--job-port=$job_port" --artifact-port=0
  --expansion-port=-1 "--artifacts-dir=$run/artifacts")
if [[ $mode == local ]]; then
  start job-server java "-Xmx$((2 * heap))m" "${options[@]}" -cp "$jars/lib/*" "${driver[@]}" '--flink-master=[local]'
else
  write_configuration
  start job-manager java -Xmx512m "${options[@]}" -cp "$jars/lib/*" \
    org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint --configDir "$run/conf" --executionMode cluster
  start_missing_task_managers
  start worker-pool "$python" -m beam_influence.pipelines.worker --worker_pool --port "$pool_port"
  start job-server java -Xmx512m "${options[@]}" -Djava.system.class.loader=HiddenJars "-Dhidden.jars=$jars/lib" \
    -cp "$jars/hidden-jars.jar" "${driver[@]}" "--flink-master=localhost:$rest_port" "--flink-conf-dir=$run/conf"
  wait_for "$workers task managers" has_task_managers
  wait_for "the pool of workers" is_listening "$pool_port"
fi
wait_for "the job server" grep -q "Job server now running" "$run/job-server.log"
say "running; logs and process ids are in $run"
echo "localhost:$job_port"
