-- What holds for every function of the extension: a comment, and nothing for PUBLIC. Those in plpgsql have their comment beside them.

-- Written by sql/comments.py from the docs in src/: do not edit.
comment on function billing.adjust_credits is
'Corrects a balance by hand, up or down, with a reason; who did it is recorded.

Up: a grant of source adjustment that never expires. Down: burns general credit in burn order. Errors: 22023; PT402 insufficient_credits; PT404 unknown_org; PT409 idempotency_conflict.';
comment on function billing.allows is
'Tells whether check_limit allows it: for the app''s own row-level policies. False for an org that is not the caller''s.

Errors: PT404 unknown_metric; 22023.';
comment on function billing.apply_catalog is
'Makes the catalog what the document says and tells what that changes; with dry_run, only tells.

catalog: {"metrics": {name: {"unit", "aggregation", "unique_by", "category", "tier", "price"}}, "plans": {name: {"period", "price", "credits", "allowances", "limits", "default"}}, "caps": [{"metric" or "category", "per", "for", "limit"}], "packs": {name: {"credits", "bonus", "price", "minimum", "unit", "metrics", "validity", "recurring", "priority", "provider_ids"}}, "surcharges": {currency: {"tax", "fee"}}}. A section that is absent is left alone, one that is present is complete: what it does not name is retired. A changed price holds from now or from its effective_at; the first one of a metric since ever. Changed allowances and limits hold at once.

Errors: 22023 invalid_catalog with every fault and its path; nothing is applied then.';
comment on function billing.begin_periods is
'Begins the periods of an org that are due, each after the usage before it is charged; gives their number. Consumption does it by itself.

Errors: 22023.';
comment on function billing.book_expiries is
'Books expired credit and timed-out holds of at most max_wallets wallets, and joins lanes that are idle; gives the number of wallets it looked after.

Balances are right without it; entries come sooner with it. For pg_cron: select cron.schedule(''* * * * *'', ''select billing.book_expiries()''). Errors: 22023.';
comment on function billing.calculate_cost(text, bigint, uuid) is
'Tells what quantity units of a metric cost, in the unit of its price (credits by default).

With org_id: at the org''s own price, after what it used in this period, less what its plan still includes. Errors: PT404 unknown_metric; 42501 not_authorized for an org that is not the caller''s; 22023 for a quantity below 1, or a price beyond 63 bits.';
comment on function billing.calculate_cost(jsonb, uuid) is
'Tells what a request that uses several metrics costs: {"query": 1, "tool": 2}. Cast a literal to jsonb.

Errors: as for one metric; 22023 also when the prices are in different units.';
comment on function billing.cancel_subscription is
'Ends an org''s subscription with its period, or at once. Credits of the plan that are left stay until they expire.

Errors: PT404 unknown_subscription; 22023.';
comment on function billing.capture_credits is
'Charges what a reserved request really used: up to what was reserved, or beyond.

quantity: null as reserved. The price is that of the moment of the reservation. What was reserved and not used goes back to its grants; credit that expired after it was reserved can still be captured. beyond, when it costs more than was reserved: charge burns the difference as a consumption would, refuse is PT409 capture_exceeds. Errors: PT409 hold_closed; PT404 unknown_hold; else as consume_credits. A refused capture leaves the hold open.';
comment on function billing.change_plan is
'Changes the plan of an org that has a subscription: now, in proportion to the rest of the period, or at its end.

Errors: PT404 unknown_plan, unknown_subscription; PT409 idempotency_conflict; 22023.';
comment on function billing.check_limit is
'Tells whether the org may use quantity more of the metric, why or why not, what is used, included and left, what it would cost, and when that starts anew.

Exact to the last recorded event. reason: included | credits | core | soft_limit when allowed; plan_limit | insufficient_credits | cap | frozen when not. included and remaining are null where there is no limit. credits_available is what is left for this metric once overage that was not paid yet is. A bounded number of index reads, however long the history; takes no locks. Errors: 42501 not_authorized for an org that is not the caller''s; PT404 unknown_metric; 22023.';
comment on function billing.clock is
'Gives billing time: the wall clock at the moment of the call, or billing.test_clock where a superuser has set it.';
comment on function billing.configure_alerts is
'Says when alerts are raised: at which percentages of an allowance, cap or balance, and how many days before a grant expires.

shares: 1 to 100 each, at most 20; expiring_days: 0 to 366; deliver: each alert that is raised also goes into the outbox, topic alert.raised. Holds from the next look on. Errors: 22023.';
comment on function billing.configure_auto_recharge is
'Lets a pack be bought whenever the credit that can be spent, and that is on its way, is together below a threshold.

threshold: in the unit of the pack''s wallet. monthly_ceiling: minor units that it may charge in a calendar month (UTC), null for none, which is not for members; nor is a threshold of more than ten packs. At most three payments are asked for within an hour. customer, payment_method: the provider''s ids of what is to be charged; without a customer, the one that is linked to the org. Members may name a linked one only. Setting it again starts it again after failures. Errors: PT404 unknown_pack; 42501; 22023.';
comment on function billing.configure_membership is
'Names the app''s own table of users and orgs, so that members need no orgs in their claims; three nulls take it away.

relation is an ordinary or partitioned table with one row per user and org: org_column of type uuid, user_column (which the claim sub is compared with) of type uuid, text, varchar, smallint, integer or bigint, or domains over these. It is read with the rights of its owner, and followed when it is renamed. When a column goes or gets another type, members see nothing until this is called again. Only for the owner of the extension. Errors: 42501 no_level; 22023.';
comment on function billing.consume_credits is
'Charges an org for quantity of a metric, in the caller''s transaction: counts the usage, prices it, and burns the credit.

quantity: whole units, from 1. idempotency_key: 1 to 255 bytes; a repeated call with the same arguments charges nothing and gives the first result, marked replayed. member_id: who in the org it was for. metadata: an object. The result''s balances are what the org can spend on that metric. Errors: PT402 insufficient_credits, plan_limit; PT404 unknown_org, unknown_metric; PT409 idempotency_conflict; PT429 cap_exceeded; 22023.';
comment on function billing.consume_credits_batch is
'Charges many consumptions in one call, each with an outcome of its own: a refused item changes nothing and does not stop the others.

items: an array of at most 10,000 objects {"org_id", "metric", "quantity", "idempotency_key", "member_id", "metadata"}, of which the first two are needed. item counts from 1. status: ok | replayed | insufficient_credits | cap_exceeded | invalid; detail says why. Errors: 22023 when items is no array.';
comment on function billing.create_gift_cards is
'Makes codes that are worth credit, and gives them this one time: only their hashes are kept.

name: the batch; the same name again adds to it. credits: what each redemption grants, whole units from 1. count: so many codes, 1 to 10,000. unit: credit, or a currency (credits are minor units then). metrics: the only metrics on which the credit may be spent, null for any. max_redemptions: how often each code can be redeemed in all, 1 to 1,000,000; by each org once. expires_at: until when the codes can be redeemed, null for ever. validity: how long the credit can be spent from then on (30 days, 2 weeks, 6 months, 1 year), null for ever. source: gift_card | voucher. Errors: 22023; PT404 unknown_metric.';
comment on function billing.create_wallet is
'Makes a wallet, or changes who owns it and when it counts as low.

owner_type: user | community | organization (at first). low_balance_threshold: in the wallet''s unit, 0 for never. Null leaves as it is. A grant makes the wallet by itself; call this for another owner or a threshold. Errors: 22023.';
comment on function billing.credit_history is
'Gives the credit of an org month by month (calendar, UTC), the current month first: per unit what came in, was used (also per metric), expired, was refunded, what else moved (holds, adjustments, voids, transfers, payouts), and the closing balance.

months: 1 to 1200. A month''s refunds are those made in it. Answers in the same time however long the ledger. Errors: 42501 not_authorized; 22023.';
comment on function billing.explain_consumption is
'Tells, as a dry run, which grants a consumption would burn, in order, and what each would have left.

No row when it costs nothing. Errors: as consume_credits would refuse it; 42501 not_authorized.';
comment on function billing.export_catalog is
'Gives the catalog as a document, with the prices in force now: applying it again changes nothing.';
comment on function billing.get_total_credits is
'Tells what the org can spend now; with metric, on that metric, credit scoped to it included.

Takes the same time however long the history. An org without a wallet in that unit has 0. Errors: 42501 not_authorized for an org that is not the caller''s; PT404 unknown_metric; 22023.';
comment on function billing.get_wallet is
'Gives a wallet as it is now: available, reserved, locked and pending credit, what was ever purchased and consumed, the low-balance threshold.

available is general credit that can be spent now; scoped is for some metrics only; future is not effective yet. Errors: PT404 unknown_org when the org has no wallet in that unit; 42501 not_authorized; 22023.';
comment on function billing.grant_credits is
'Grants credit, and makes the wallet when it is the first.

amount: whole units, from 1. source: purchase | plan | bonus | gift_card | voucher | refund | adjustment | transfer. category: paid | promotional, by default paid for purchase, transfer and refund. metrics: the only metrics it may be spent on, null for any. priority: lower burns first. expires_at: null for never. cost_minor and currency: what was paid for it. Errors: 22023; PT404 unknown_metric; PT409 idempotency_conflict.';
comment on function billing.handle_webhook is
'Takes what a payment provider reports: verifies the signature, and does the work of the event once, in this transaction.

provider: stripe | razorpay. payload: the body as it came, byte for byte. signature: the header Stripe-Signature or X-Razorpay-Signature. event_id: the header x-razorpay-event-id, where there is one; Stripe''s stands in the payload. status: processed, duplicate, ignored (a type that is not used), or review: kept for a person, see replay_webhook. Only what is refused should be delivered again. Errors: PT401 invalid_signature; 22023.';
comment on function billing.install is
'Creates the tables of pg_billing, or migrates them after ALTER EXTENSION … UPDATE; says what it did.

Running it again changes nothing, but that rights in the schemas of pg_billing which grant_access did not give are taken, and said whose they were. Needs the rights of the schema''s owner. Errors: 55000 not_installed when the tables are newer than the library, and tables_missing when some of them are gone; 0A000 unsupported_encoding in a database that is not UTF8.';
comment on function billing.link_customer is
'Tells which org a provider''s customer is, where its reports do not say: then replay what waits for it.

Errors: 22023.';
comment on function billing.link_payment is
'Tells by which id a provider knows a payment, where its reports do not say: then replay what waits for it.

Errors: PT404 unknown_payment; 22023.';
comment on function billing.lock_credits is
'Locks credit that is to be paid out, without a time limit.

amount: from 1, of general credit. Then pay_out or release_credits. Errors: PT402 insufficient_credits; PT404 unknown_org; PT409 idempotency_conflict; 22023.';
comment on function billing.my_orgs is
'Gives the orgs of the caller, for policies: use it in a sub-select, so that it is asked once per statement.

They are those that the claims of the request name (org_id, app_metadata.org_id, app_metadata.org_ids), and those of the user (the claim sub) by the table of configure_membership.';
comment on function billing.pay_out is
'Lets locked credit leave: it was paid out.

Errors: PT404 unknown_hold; PT409 hold_closed, idempotency_conflict; 22023 for a usage hold.';
comment on function billing.quote_pack is
'Tells what a pack costs and brings: price, tax, platform fee and total in minor units of the currency; credits, bonus on top of them, and until when they would be good (null: for ever).

amount: minor units, for packs of which any amount can be paid; null: the listed price. Errors: PT404 unknown_pack; 22023 for a currency without a price, an amount below the minimum; 42501 for an org that is not the caller''s.';
comment on function billing.record_usage is
'Records that an org used quantity of a metric, to be charged by settlement; false for an event that was recorded before.

event_id: 1 to 255 bytes; an event of an org counts once, however late it is repeated. occurred_at: null for now; it counts in the period in which it occurred, also when that was settled; at most 5 minutes in the future. quantity: from 1, or the level (from 0) for a metric that reports levels (max, last). properties: an object. Writers never wait for one another. Errors: PT404 unknown_metric; 22023.';
comment on function billing.record_usage_batch is
'Records many events in one call: all of them, or none.

events: an array of at most 100,000 objects {"org_id", "metric", "quantity", "event_id", "occurred_at", "member_id", "properties"}, of which the first two are needed. Duplicates are counted and left out. Errors: as record_usage, with the number of the faulty event (from 1) as item in the detail; nothing is recorded then.';
comment on function billing.redeem_gift_card is
'Redeems a code for an org: grants it promotional credit, and makes its wallet when it is the first.

code: as it was given, in capitals or not, with or without dashes and spaces, O for 0, I and L for 1. expires_at: until when the credit can be spent, null for ever. Members may call it for their own orgs. Errors: PT404 unknown_code for every code that this org cannot redeem, whether it does not exist, is used up, expired or voided, or the org has redeemed it; PT429 too_many_attempts for every code after ten that failed within an hour, or where a failed attempt cannot be noted (no free background worker), with retry_at; 42501 not_authorized; PT409 idempotency_conflict; 22023.';
comment on function billing.refund_credits is
'Refunds a consumption or capture, whole or in part, to the very grants that it burned, in the recorded order.

credits: null for all that was not refunded yet. What goes back to a grant that has expired or was voided meanwhile expires or is voided at once. The usage stays counted. Errors: PT404 unknown_operation; PT409 refund_exceeds, idempotency_conflict; 22023.';
comment on function billing.release_credits is
'Gives the credit of an open hold, reserved or locked, back to the grants that it came from.

Errors: PT404 unknown_hold; PT409 hold_closed.';
comment on function billing.replay_webhook is
'Tries once more what was kept for a person, once its payment, org or price is known (link_payment, link_customer, the catalog''s provider_ids).

status as of handle_webhook; what was done already stays done: duplicate. Errors: PT404 unknown_event; 22023.';
comment on function billing.reserve_credits is
'Reserves what quantity of a metric costs now, for at most ttl.

The credit counts as gone at once; capture charges what was really used, release gives it back, and when the time is over it is free again by itself. ttl: above zero, at most a year. Errors: as consume_credits.';
comment on function billing.set_member_budget is
'Limits what a member of a wallet may consume per day, month (calendar, UTC) or in total; null takes the limit away.

credits: from 0, in the wallet''s unit. Consumption and reservation beyond it are refused with PT429 cap_exceeded. Errors: PT404 unknown_org; 22023.';
comment on function billing.set_org_allowance is
'Gives an org its own allowance per period, or limit, for a metric; null leaves it to the plan. Holds at once.

limit_kind: hard | soft | unlimited. Errors: PT404 unknown_metric; 22023.';
comment on function billing.set_org_price is
'Gives an org a price of its own for a metric, from effective_at or now on; a null price returns it to the list price.

price: as in the catalog document. Errors: PT404 unknown_metric; 22023 invalid_catalog for a bad price.';
comment on function billing.set_payment_status is
'Moves a payment by hand, where no provider reports: a bank transfer that came, or one that was sent back.

status: processing | pending | succeeded | failed | refunded. Succeeded grants the credit; refunded takes back what is left of it, and flags what was spent. The same status again changes nothing. reason: kept where it failed. Errors: PT404 unknown_payment; PT409 illegal_transition; 22023.';
comment on function billing.set_wallet_lanes is
'Splits a wallet that many spend from at once into lanes, so that they need not wait for each other; or joins them again.

lanes: 1 (one balance, as every wallet begins) to 64; 0: automatic, more when consumptions wait for each other, and one when nobody did for ten minutes. Any time, under load too: it waits for transactions that are spending from lanes to be joined. Consumption refuses only what all lanes together do not cover. Entries of a split wallet show the balance of their lane; what calls answer is the wallet''s. Errors: PT404 unknown_org, when the org has no wallet in that unit; 22023.';
comment on function billing.set_webhook_secret is
'Sets the secret with which a provider signs its webhooks (Stripe: whsec_…; Razorpay: the one of the webhook). Nobody can read it back.

The one before stays good for keep_old, so that nothing is refused while the provider changes over. Errors: 22023.';
comment on function billing.settle_org is
'Settles one org as of a moment (null: now): charges recorded usage beyond what is included, begins periods that are due, books what expired, brings reports and alerts up to date.

charged: credits burned; unpaid: what the wallet could not pay, and the next credit that comes in will; renewed: periods begun; events: recorded events that were settled. Run again, it charges nothing. Errors: 22023.';
comment on function billing.start_purchase is
'Starts the purchase of a pack: notes what is to be paid and what it will bring. Nothing is granted before the provider reports the money.

currency: null where the pack has a price in one only. Give payment_id and org_id to the provider as metadata (Stripe) or notes (Razorpay), and charge total minor units. With customer, a worker is asked to charge the customer''s saved payment_method at once (topic payment.requested of the outbox). amount: minor units, for packs of which any amount can be paid. Members may name a customer that is linked to their org only, and begin 30 purchases of an org within an hour. Errors: PT404 unknown_pack; PT409 idempotency_conflict; PT429 too_many_purchases; 42501 for an org that is not the caller''s; 22023.';
comment on function billing.subscribe is
'Puts an org on a plan, or changes its plan.

Without a subscription, one begins at starts_at (null: now; also in the past or future), and its periods count from there: 31 January, 28 February, 31 March. With one, the plan changes now, allowances and credits in proportion to the rest of the period; or at the end of the period, when starts_at is that. The same plan again takes back a cancellation or a change that was to come. Makes the wallet where there is none. Errors: PT404 unknown_plan; PT409 idempotency_conflict; 22023.';
comment on function billing.transfer_credits is
'Moves general credit to another org''s wallet of the same unit, which it makes when there is none.

Burns in burn order; the receiver''s grants keep category, priority, expiry and their share of the cost. amount: from 1. Errors: PT402 insufficient_credits; PT404 unknown_org for the giving org; PT409 idempotency_conflict; 22023, also for a transfer to itself.';
comment on function billing.verify_ledger is
'Proves the ledger of one org, or of all: no row means that it is sound.

Recomputes every hash, and checks that no entry is missing from a chain; that each balance_after is balance_before plus amount, and the next entry''s balance_before; that wallets, grants, reserved and locked credit agree with the sum of their entries; that no grant is below zero or above its amount; that refunds stay within what was burned. detail names the place. Lists at most about 10,000 violations. Reads one snapshot and blocks nobody.';
comment on function billing.version is
'Tells the version of the library, and the versions of the tables that it needs and finds (0: none).';
comment on function billing.void_gift_cards is
'Voids the codes of a batch that are not used up, and gives their number. What was redeemed stays.

Errors: PT404 unknown_batch; 22023.';
comment on function billing.void_grant is
'Takes back what is left of a grant (a clawback) and reports what was already spent or is reserved.

Credit of the grant that comes back later, from a hold or a refund, is voided at once. Errors: PT404 unknown_grant; 22023; PT409 idempotency_conflict.';
comment on function billing_internal.caller is
'Gives the name of the role that called the function whose body asks: for bodies in plpgsql, which have become the owner.';
comment on function billing_internal.cluster is
'Gives the number of the database cluster: within one only, an oid means the same role.';
comment on function billing_internal.forget_levels is
'Lets every backend ask anew for the levels of roles.';
comment on function billing_internal.membership_fault is
'Tells what keeps the table of members from being read, if something does; for status().';
comment on function billing_internal.require_administrator is
'Refuses a caller who does not own the extension; for functions in plpgsql that give and take levels.';
comment on function billing_internal.require_sound is
'Refuses to go on where something of another role would run with our rights; for the trigger of metered tables.';
comment on function billing_internal.take_turn is
'Waits for a turn, for bodies in plpgsql; nobody else can take one.';
comment on function billing_internal.unfolded_usage is
'Gives what an org consumed that is not counted in usage_days yet, by metric and day (UTC): for the view usage_by_day.

credits is what was charged for it. Errors: 42501 not_authorized for an org that is not the caller''s; 22023.';
-- Until here.

-- Only the members: on others, a REVOKE in an extension's script is taken for part of the extension by pg_dump.
do $$
declare
    member regprocedure;
begin
    for member in select d.objid from pg_catalog.pg_depend d join pg_catalog.pg_extension e on e.oid = d.refobjid
                   where d.classid = 'pg_catalog.pg_proc'::regclass and d.refclassid = 'pg_catalog.pg_extension'::regclass
                     and d.deptype = 'e' and e.extname = 'pg_billing' loop
        execute pg_catalog.format('revoke all on routine %s from public', member);
    end loop;
end $$;
