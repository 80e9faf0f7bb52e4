// Drives a gateway that leaks: node leak.mjs URL COUNT DELAY_MS
// Sends COUNT `initialize` requests. For each one the gateway starts a server, answers, and
// forgets the server, which goes on living.

const [url, count, delay] = process.argv.slice(2);
const patience = 30_000;
let answered = 0;

for (let id = 1; id <= Number(count); id++) {
  const start = Date.now();
  const outcome = await post(id).catch((error) => `failed: ${error.cause?.code ?? error.name}`);
  if (outcome === 'answered') answered++;
  console.log(`POST ${id}: ${outcome} after ${Date.now() - start} ms`);
  await new Promise((resolve) => setTimeout(resolve, Number(delay)));
}
process.exit(answered === Number(count) ? 0 : 1);

async function post(id) {
  const response = await fetch(url, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      accept: 'application/json, text/event-stream',
    },
    body: JSON.stringify({
      jsonrpc: '2.0',
      id,
      method: 'initialize',
      params: {
        protocolVersion: '2025-06-18',
        capabilities: {},
        clientInfo: { name: 'leak', version: '1' },
      },
    }),
    signal: AbortSignal.timeout(patience),
  });
  const text = await response.text();
  return text.includes('serverInfo') ? 'answered' : `status ${response.status}`;
}
