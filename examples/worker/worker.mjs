// Takes payments that the database asks for to Stripe, and Stripe's webhooks back into the database.
//
//   DATABASE_URL        a role with billing.grant_access(…, 'service')
//   STRIPE_SECRET_KEY   sk_…
//   PORT, HOST          where POST /webhooks/stripe is answered (8080 on 127.0.0.1: put a proxy with TLS before it)
//   LEASE               seconds for which a claimed event is ours; another worker takes it over afterwards (60)
//   POLL                seconds between looks at the outbox when no notification comes (5)
//   RETRY               seconds until a call that failed is tried again (unset: the database decides)
//   STRIPE_API_BASE     another server in Stripe's place, as http://127.0.0.1:12111 (tests)
//
// Delivery is at least once: this process may die anywhere, and the event comes again when its lease is over. What
// keeps a card from being charged twice is the idempotency key: it comes with the event, so a repeated call has the
// same one, and Stripe answers it with the result of the first. For a day, that is: then we look before we charge.

import http from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import Stripe from 'stripe';

const { DATABASE_URL, STRIPE_SECRET_KEY, STRIPE_API_BASE, HOST = '127.0.0.1', PORT = '8080' } = process.env;
const LEASE = Number(process.env.LEASE ?? 60);
const POLL = Number(process.env.POLL ?? 5);
const RETRY = process.env.RETRY ? Number(process.env.RETRY) : null;
if (!DATABASE_URL || !STRIPE_SECRET_KEY) throw new Error('set DATABASE_URL and STRIPE_SECRET_KEY');

const AT_ONCE = 10;
const LARGEST_BODY = 1024 * 1024;
const KEY_LIFETIME = 23 * 3600 * 1000;

const base = STRIPE_API_BASE && new URL(STRIPE_API_BASE);
const stripe = new Stripe(STRIPE_SECRET_KEY, {
  timeout: Math.round(LEASE * 800), // milliseconds: over before the lease is
  maxNetworkRetries: 0, // the outbox repeats
  ...(base && { host: base.hostname, port: base.port || undefined, protocol: base.protocol.slice(0, -1) }),
});

const connection = {
  connectionString: DATABASE_URL, application_name: 'pg_billing worker', connectionTimeoutMillis: 5000, keepAlive: true,
};
const pool = new pg.Pool(connection);
pool.on('error', (error) => console.error(`lost an idle connection: ${error.message}`));

const stop = new AbortController();
const stopping = () => stop.signal.aborted;
const stopped = new Promise((resolve) => stop.signal.addEventListener('abort', resolve));
let bell = new AbortController(); // rung when there may be work

// ------------------------------------------------------------------ from the outbox to Stripe

async function charge({ payload: payment, created_at }) {
  const { payment_id, org_id, idempotency_key } = payment;
  if (payment.provider !== 'stripe') throw new Error(`this worker knows no ${payment.provider}`);
  // Stripe may forget a key after 24 hours. What could repeat an older call asks first whether that one came through.
  if (Date.now() - created_at > KEY_LIFETIME) {
    const { data } = await stripe.paymentIntents.search({ query: `metadata['idempotency_key']:'${idempotency_key}'` });
    if (data.length) return data[0];
  }
  return stripe.paymentIntents.create(
    {
      amount: payment.amount_minor,
      currency: payment.currency.toLowerCase(),
      customer: payment.customer ?? undefined,
      payment_method: payment.payment_method ?? undefined,
      description: payment.description ?? undefined,
      metadata: { payment_id, org_id, idempotency_key },
      confirm: true,
      off_session: true,
      // Nobody is there to be sent to another page, and with this nobody needs a return_url.
      automatic_payment_methods: { enabled: true, allow_redirects: 'never' },
    },
    { idempotencyKey: idempotency_key },
  );
}

// Whether the money came is the webhook's to say. Here it only matters whether Stripe has got the request for good:
// a declined card is an answer (payment_intent.payment_failed follows), everything else is tried again.
async function handle(event) {
  const { payment_id } = event.payload;
  let outcome;
  try {
    outcome = (await charge(event)).status;
  } catch (error) {
    if (!(error instanceof Stripe.errors.StripeCardError)) {
      const { rows } = await pool.query('select billing.fail_event($1, $2, make_interval(secs => $3)) as fate', [
        event.event_id, `${error.type ?? error.name}: ${error.message}`, RETRY,
      ]);
      console.error(`payment ${payment_id}: ${rows[0].fate}, attempt ${event.attempt} failed: ${error.message}`);
      return;
    }
    outcome = `declined (${error.decline_code || error.code})`;
  }
  await pool.query('select billing.ack_events($1)', [[event.event_id]]);
  console.log(`payment ${payment_id}: ${outcome}`);
}

async function work() {
  const { rows: events } = await pool.query(
    `select * from billing.claim_events(array['payment.requested'], $1, make_interval(secs => $2))`, [AT_ONCE, LEASE],
  );
  for (const { status, reason } of await Promise.allSettled(events.map(handle))) {
    // The database was gone when it should have been told: the event comes again after its lease.
    if (status === 'rejected') console.error(`not acknowledged: ${reason.message}`);
  }
  return events.length;
}

async function workUntilStopped() {
  while (!stopping()) {
    bell = new AbortController();
    const found = await work().catch((error) => console.error(`cannot claim events: ${error.message}`));
    // A bell that rang meanwhile ends the pause before it begins.
    if (!found && !stopping()) await sleep(POLL * 1000, null, { signal: bell.signal }).catch(() => {});
  }
}

// LISTEN wants a connection of its own, and not through a pooler that hands out transactions. Notifications only save
// time: retries and leases that run out announce themselves by none, so the loop above looks by itself, too.
async function listenUntilStopped() {
  while (!stopping()) {
    const client = new pg.Client(connection);
    const gone = new Promise((resolve) => client.on('error', resolve).on('end', resolve));
    client.on('notification', () => bell.abort());
    try {
      await client.connect();
      await client.query('listen billing_events');
      bell.abort(); // what was announced before we listened
      await Promise.race([gone, stopped]);
    } catch (error) {
      console.error(`cannot listen: ${error.message}`);
    }
    await client.end().catch(() => {});
    await sleep(1000, null, { signal: stop.signal }).catch(() => {});
  }
}

// ------------------------------------------------------------------ from Stripe's webhooks into the database

async function bodyOf(request) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size <= LARGEST_BODY) chunks.push(chunk);
  }
  // As it came: the signature is over these bytes.
  return size <= LARGEST_BODY ? Buffer.concat(chunks).toString('utf8') : null;
}

const server = http.createServer(async (request, response) => {
  const answer = (status, text) => response.writeHead(status, { 'content-type': 'text/plain' }).end(`${text}\n`);
  if (request.method !== 'POST' || request.url !== '/webhooks/stripe') return answer(404, 'not found');
  try {
    const body = await bodyOf(request);
    if (body === null) return answer(413, 'too large');
    await pool.query(`select * from billing.handle_webhook('stripe', $1, $2)`, [body, request.headers['stripe-signature'] ?? '']);
    answer(200, 'ok');
  } catch (error) {
    // Not signed by Stripe, or not an event: to send it again would not help. Everything else Stripe sends again.
    const refused = ['PT401', '22023', '22021'].includes(error.code);
    console.error(`webhook ${refused ? 'refused' : 'failed'}: ${error.code ?? ''} ${error.message}`);
    answer(refused ? 400 : 500, refused ? 'refused' : 'try again');
  }
});

// ------------------------------------------------------------------ from start to stop

for (const name of ['SIGTERM', 'SIGINT']) {
  process.once(name, () => {
    stop.abort();
    bell.abort();
  });
}

server.listen(Number(PORT), HOST, () => console.log(`listening on http://${HOST}:${server.address().port}/webhooks/stripe`));
await Promise.all([workUntilStopped(), listenUntilStopped()]); // events that are under way are finished
await new Promise((resolve) => {
  server.close(resolve);
  server.closeIdleConnections();
});
await pool.end();
