# Keeps servers alive without a gateway: sh hold.sh COUNT PACKAGE...
# Each server waits for input from a pipe that nobody writes to.
count=$1
shift
pipe=$(mktemp -u)
mkfifo "$pipe"
sleep 1000000 >"$pipe" &
for package in "$@"; do
  i=0
  while [ "$i" -lt "$count" ]; do
    npm exec "$package" <"$pipe" >/dev/null &
    i=$((i + 1))
  done
done
wait
