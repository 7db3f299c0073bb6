// Stands for Stripe in tests: payment intents as the SDK makes and searches them, and webhooks signed by the SDK itself.
// Everything is kept in memory, on loopback only; killing it is allowed.
//
//   PORT             where it listens (12111; 0: any)
//   WEBHOOK_URL      where events are posted
//   WEBHOOK_SECRET   what they are signed with
//
// The payment method decides: pm_card_declined is declined, pm_processing takes until /_settle, all others succeed.
// Tests see and steer it by
//
//   GET  /_intents                         the payment intents; `charged` is the money that was taken
//   GET  /_requests                        the requests: idempotency key, status of the answer, whether it was replayed
//   GET  /_events                          the events, with the answers of the webhook endpoint
//   POST /_hold, /_release                 charges are made, but their answers held back
//   POST /_mute, /_unmute                  events wait until /_unmute or /_deliver
//   POST /_forget                          idempotency keys, as Stripe does after a day
//   POST /_settle {intent, status}         what became of an intent, with the event that tells of it
//   POST /_deliver {event, times, secret}  posts an event, so many times at once; gives the answers

import { createHash, randomUUID } from 'node:crypto';
import http from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import Stripe from 'stripe';

const { PORT = '12111', WEBHOOK_URL, WEBHOOK_SECRET } = process.env;
const stripe = new Stripe('sk_test_fake');

const intents = new Map();
const events = new Map();
const requests = [];
const remembered = new Map(); // idempotency key → {fingerprint, answer}; no answer: the first request is under way
let muted = false;
let release = null; // ends the hold

const id = (prefix) => `${prefix}_${randomUUID().replaceAll('-', '')}`;
const seconds = () => Math.floor(Date.now() / 1000);
const failure = (status, error) => ({ status, body: { error } });

// ------------------------------------------------------------------ payment intents

const EVENT_OF = {
  succeeded: 'payment_intent.succeeded',
  processing: 'payment_intent.processing',
  requires_payment_method: 'payment_intent.payment_failed',
  canceled: 'payment_intent.canceled',
};

// What a form's metadata[payment_id]=… says, as {payment_id: …}
function metadataOf(form) {
  const inside = (name) => /^metadata\[(.*)\]$/.exec(name)?.[1];
  return Object.fromEntries([...form].filter(([name]) => inside(name)).map(([name, value]) => [inside(name), value]));
}

function faultOf(form) {
  if (!/^[1-9][0-9]{0,7}$/.test(form.get('amount') ?? '')) return ['amount', 'Invalid positive integer'];
  if (!/^[a-z]{3}$/.test(form.get('currency') ?? '')) return ['currency', 'Invalid currency'];
  if (form.get('confirm') !== 'true') return ['confirm', 'Only confirmed payment intents here'];
  return null;
}

function createIntent(form) {
  const method = form.get('payment_method');
  const intent = {
    id: id('pi'),
    object: 'payment_intent',
    amount: Number(form.get('amount')),
    amount_received: 0,
    capture_method: 'automatic',
    charged: 0,
    confirmation_method: 'automatic',
    created: seconds(),
    currency: form.get('currency'),
    customer: form.get('customer'),
    description: form.get('description'),
    last_payment_error: null,
    latest_charge: id('ch'),
    livemode: false,
    metadata: metadataOf(form),
    payment_method: method,
    status: 'requires_confirmation',
  };
  intents.set(intent.id, intent);
  settle(intent, { pm_card_declined: 'requires_payment_method', pm_processing: 'processing' }[method] ?? 'succeeded');
  if (intent.status !== 'requires_payment_method') return { status: 200, body: intent };
  return failure(402, { ...intent.last_payment_error, charge: intent.latest_charge, payment_intent: shown(intent) });
}

function settle(intent, status) {
  intent.status = status;
  intent.last_payment_error = null;
  if (status === 'requires_payment_method') {
    const code = { code: 'card_declined', decline_code: 'generic_decline', message: 'Your card was declined.' };
    intent.last_payment_error = { type: 'card_error', ...code };
  }
  if (status === 'succeeded') {
    intent.charged += intent.amount;
    intent.amount_received = intent.amount;
  }
  return happened(EVENT_OF[status], intent);
}

// `charged` is for tests, no field of Stripe's.
function shown({ charged, ...intent }) {
  return intent;
}

// Of Stripe's query language only metadata['…']:'…'
function search(query) {
  const [, name, value] = /^metadata\['(\w+)'\]:'([^']*)'$/.exec(query) ?? [];
  const data = [...intents.values()].filter(({ metadata }) => name && metadata[name] === value).map(shown);
  const url = '/v1/payment_intents/search';
  return { status: 200, body: { object: 'search_result', url, has_more: false, next_page: null, data } };
}

// ------------------------------------------------------------------ idempotency

// As Stripe does it: the first answer again, whatever it was, but for requests that were refused as invalid; an error
// for other parameters, and for a request that comes while the first is under way.
async function once(key, body, execute) {
  const fingerprint = createHash('sha256').update(body).digest('hex');
  const known = remembered.get(key);
  if (known && known.fingerprint !== fingerprint) {
    const message = 'Keys for idempotent requests can only be used with the same parameters they were first used with. '
      + `Try using a key other than '${key}' if you meant to execute a different request.`;
    return failure(400, { type: 'idempotency_error', message });
  }
  if (known && !known.answer) {
    const message = `There is currently another in-progress request using this Stripe-Idempotency-Key: ${key}`;
    return failure(409, { type: 'invalid_request_error', code: 'idempotency_key_in_use', message });
  }
  if (known) return { ...known.answer, replayed: true };
  const entry = { fingerprint, answer: null };
  remembered.set(key, entry);
  entry.answer = await execute();
  return entry.answer;
}

async function create(request, body) {
  const form = new URLSearchParams(body);
  if (!/^Bearer [sr]k_/.test(request.headers.authorization ?? '')) {
    return failure(401, { type: 'invalid_request_error', message: 'You did not provide an API key.' });
  }
  const fault = faultOf(form);
  if (fault) return failure(400, { type: 'invalid_request_error', param: fault[0], message: fault[1] });
  const key = request.headers['idempotency-key'] ?? id('none');
  const answer = await once(key, body, async () => {
    const { status, body: made } = createIntent(form);
    const text = JSON.stringify(made.object ? shown(made) : made);
    if (release) await release.promise;
    return { status, text };
  });
  requests.push({ key, status: answer.status, replayed: answer.replayed ?? false });
  return answer;
}

// ------------------------------------------------------------------ events

function happened(type, intent) {
  const event = {
    id: id('evt'),
    object: 'event',
    api_version: Stripe.API_VERSION,
    created: seconds(),
    data: { object: structuredClone(shown(intent)) },
    livemode: false,
    pending_webhooks: 1,
    request: { id: id('req'), idempotency_key: null },
    type,
  };
  const record = { event, answers: [] };
  events.set(event.id, record);
  if (!muted) deliverUntilTaken(record);
  return record;
}

// Gives the status of the answer; 0 when there was none
async function post({ event, answers }, secret = WEBHOOK_SECRET) {
  const payload = JSON.stringify(event, null, 2);
  const signature = stripe.webhooks.generateTestHeaderString({ payload, secret });
  const headers = { 'content-type': 'application/json; charset=utf-8', 'stripe-signature': signature };
  const status = await fetch(WEBHOOK_URL, { method: 'POST', headers, body: payload, signal: AbortSignal.timeout(10_000) })
    .then(async (response) => (await response.text(), response.status))
    .catch(() => 0);
  answers.push(status);
  return status;
}

async function deliverUntilTaken(record) {
  const taken = () => record.answers.some((status) => status >= 200 && status < 300);
  for (let pause = 100; !muted && !taken(); pause = Math.min(2 * pause, 1000)) {
    await post(record);
    await sleep(pause);
  }
}

// ------------------------------------------------------------------ the server

const CONTROL = {
  'GET /_intents': () => [...intents.values()],
  'GET /_requests': () => requests,
  'GET /_events': () => [...events.values()].map(({ event, answers }) => (
    { id: event.id, type: event.type, intent: event.data.object.id, answers })),
  'POST /_hold': () => {
    let resolve;
    const promise = new Promise((done) => { resolve = done; });
    release ??= { promise, resolve };
  },
  'POST /_release': () => {
    release?.resolve();
    release = null;
  },
  'POST /_mute': () => { muted = true; },
  'POST /_unmute': () => {
    muted = false;
    for (const record of events.values()) deliverUntilTaken(record);
  },
  'POST /_forget': () => { remembered.clear(); },
  'POST /_settle': ({ intent, status }) => ({ event: settle(intents.get(intent), status).event.id }),
  'POST /_deliver': ({ event, times = 1, secret }) => (
    Promise.all(Array.from({ length: times }, () => post(events.get(event), secret)))),
};

const server = http.createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks).toString('utf8');
  const { pathname, searchParams } = new URL(request.url, 'http://localhost');
  const wanted = `${request.method} ${pathname}`;
  let answer;
  if (wanted === 'POST /v1/payment_intents') {
    answer = await create(request, body);
  } else if (wanted === 'GET /v1/payment_intents/search') {
    answer = search(searchParams.get('query'));
  } else if (CONTROL[wanted]) {
    try {
      answer = { status: 200, body: (await CONTROL[wanted](body ? JSON.parse(body) : {})) ?? {} };
    } catch (error) {
      answer = failure(400, { type: 'control', message: error.message });
    }
  } else {
    answer = failure(404, { type: 'invalid_request_error', message: `Unrecognized request URL (${wanted}).` });
  }
  const headers = { 'content-type': 'application/json', 'request-id': id('req') };
  if (answer.replayed) headers['idempotent-replayed'] = 'true';
  response.writeHead(answer.status, headers).end(answer.text ?? JSON.stringify(answer.body));
});

server.listen(Number(PORT), '127.0.0.1', () => console.log(`listening on http://127.0.0.1:${server.address().port}`));
