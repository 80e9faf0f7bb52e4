# $1 is the container image. The leak is bounded: at most twelve servers, with a pids limit.
set -eu
mkdir -p /etc/mcp-guard
cp /payload/policy.toml /etc/mcp-guard/policy.toml
systemctl start mcp-guard.service
docker run --detach --name leak --network none --pids-limit 500 "$1" \
  node /opt/gw/node_modules/supergateway/dist/index.js --stdio 'npx -y @21st-dev/magic@0.1.0' \
  --outputTransport streamableHttp --port 8871
cat >/etc/motd <<'MOTD'

The agent runs as mcp-guard.service. The container `leak` starts a server every 20 seconds that
never ends. Try:

  mcp-guard status                    servers by package, and holds
  mcp-guard thaw leak                 release a freeze
  mcp-guard doctor
  docker top leak
  journalctl -u mcp-guard
  tail /var/log/mcp-guard/audit.jsonl
  poweroff

MOTD
systemd-run --quiet --unit leak-requests sh -c '
  until docker logs leak 2>&1 | grep -q Listening; do sleep 1; done
  docker exec leak node /opt/gw/leak.mjs http://127.0.0.1:8871/mcp 12 20000'
