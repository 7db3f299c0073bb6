-- A comment on every function, and nothing for PUBLIC. Units: amounts and credits are whole units of the wallet (credits,
-- or minor units of a currency); quantities are whole units of the metric.

comment on function billing.grant_credits is
'Grants credit; makes the wallet when it is the first. source: purchase, plan, bonus, gift_card, voucher, refund, adjustment or transfer; category: paid or promotional (by default paid for purchase, transfer, refund); metrics: the only ones it may be spent on; lower priority burns first; expires_at null: never; cost_minor and currency: what was paid. Errors: 22023, PT404 unknown_metric, PT409 idempotency_conflict.';
comment on function billing.create_wallet is
'Makes a wallet, or changes its owner_type (user, community, organization) and low_balance_threshold (0: never low); null leaves as it is. Errors: 22023.';
comment on function billing.set_wallet_lanes is
'Splits a wallet that many spend from at once into lanes, 1 (one balance) to 64, or joins them again; 0: automatic, more when consumptions wait for each other, one when nobody did for ten minutes. At any time. Nothing is refused that all lanes together cover. Errors: PT404 unknown_org, 22023.';
comment on function billing.consume_credits is
'Charges an org for a quantity of a metric in the caller''s transaction. The same idempotency_key (1 to 255 bytes) with the same arguments charges nothing and gives the first result again. Errors: PT402 insufficient_credits or plan_limit, PT404 unknown_org or unknown_metric, PT409 idempotency_conflict, PT429 cap_exceeded, 22023.';
comment on function billing.consume_credits_batch is
'Charges up to 10,000 consumptions [{"org_id", "metric", "quantity", "idempotency_key", "member_id", "metadata"}, …], each with an outcome of its own: ok, replayed, insufficient_credits, cap_exceeded or invalid; detail says why. item counts from 1. Errors: 22023.';
comment on function billing.reserve_credits is
'Sets aside what a quantity of a metric costs, for at most ttl (up to a year); the credit is gone at once and free again by itself when the time is over. Errors: as consume_credits.';
comment on function billing.capture_credits is
'Charges what a reserved request really used, at the price of the moment of the reservation; quantity null: as reserved. The rest goes back to its grants. beyond: charge burns what exceeds the hold, refuse is PT409 capture_exceeds. Errors: PT404 unknown_hold, PT409 hold_closed, else as consume_credits; a refused capture leaves the hold open.';
comment on function billing.release_credits is
'Gives the credit of an open hold, reserved or locked, back to its grants. Errors: PT404 unknown_hold, PT409 hold_closed.';
comment on function billing.lock_credits is
'Locks general credit that is to be paid out, without a time limit; then pay_out or release_credits. Errors: PT402 insufficient_credits, PT404 unknown_org, PT409 idempotency_conflict, 22023.';
comment on function billing.pay_out is
'Lets locked credit leave: it was paid out. Errors: PT404 unknown_hold, PT409 hold_closed or idempotency_conflict, 22023.';
comment on function billing.refund_credits is
'Gives credit of a consumption or capture back to the very grants that it burned, in the recorded order; credits null: all that was not refunded yet. The usage stays counted. Errors: PT404 unknown_operation, PT409 refund_exceeds or idempotency_conflict, 22023.';
comment on function billing.adjust_credits is
'Corrects a balance by hand, up (a promotional grant that never expires) or down (burns general credit); reason and actor are recorded. Errors: PT402 insufficient_credits, PT404 unknown_org, PT409 idempotency_conflict, 22023.';
comment on function billing.void_grant is
'Takes back what is left of a grant and reports what was already spent or is reserved; credit of it that comes back later is voided at once. Errors: PT404 unknown_grant, PT409 idempotency_conflict, 22023.';
comment on function billing.transfer_credits is
'Moves general credit to another org''s wallet of the same unit, making it if need be; category, priority, expiry and share of the cost go along. Errors: PT402 insufficient_credits, PT404 unknown_org (the giver), PT409 idempotency_conflict, 22023.';
comment on function billing.set_member_budget is
'Limits what a member of a wallet may consume per day, month (calendar, UTC) or in total; credits null takes the limit away. Errors: PT404 unknown_org, 22023.';
comment on function billing.book_expiries is
'Books the rest of expired grants and the holds that timed out, of at most max_wallets wallets; gives the number of wallets looked after. For pg_cron; balances are right without it. Errors: 22023.';

comment on function billing.get_total_credits is
'What the org can spend now, in constant time; with metric: on that metric, credit scoped to it included. 0 for an org without a wallet in that unit. Errors: 42501 not_authorized, PT404 unknown_metric, 22023.';
comment on function billing.get_wallet is
'A wallet at this moment: see the type wallet_status. Errors: PT404 unknown_org, 42501 not_authorized, 22023.';
comment on function billing.explain_consumption is
'A dry run: which grants a consumption would burn, in order, and what each would have left; no row when it is free. Errors: as consume_credits would refuse it, 42501 not_authorized.';
comment on function billing.verify_ledger is
'Proves the ledger of one org, or of all: hash chains, balances, grants, holds and refunds. No row: sound.';

comment on function billing.create_gift_cards is
'Makes codes that are worth credit, and gives them this one time: only their hashes are kept. name: the batch, the same name again adds to it; credits: what each redemption grants; count: 1 to 10,000 codes; unit: credit or a currency; metrics: the only ones it may be spent on; max_redemptions: per code in all, 1 to 1,000,000, by each org once; expires_at: of the codes; validity: of the credit from its redemption on (30 days, 2 weeks, 6 months, 1 year), null: for ever; source: gift_card or voucher. Errors: 22023, PT404 unknown_metric.';
comment on function billing.redeem_gift_card is
'Redeems a code for an org: grants it promotional credit; makes the wallet when it is the first. Members may for their own orgs. Case, dashes and spaces do not matter, O is 0, I and L are 1. Errors: PT404 unknown_code, whatever is the matter with the code; PT429 too_many_attempts after ten that failed within an hour, or without a free background worker to note one; 42501 not_authorized, PT409 idempotency_conflict, 22023.';
comment on function billing.void_gift_cards is
'Codes of a batch that are not used up can no longer be redeemed; gives their number. What was redeemed stays. Errors: PT404 unknown_batch, 22023.';

comment on function billing.apply_catalog is
'Makes the catalog what the document says ({"metrics": {name: {"unit", "aggregation", "unique_by", "category", "tier", "price"}}, "plans": {name: {"period", "price", "credits", "allowances", "limits", "default"}}, "caps": [{"metric" or "category", "per", "for", "limit"}]}) and tells what that changes; with dry_run, only tells. What a present section does not name is retired. Errors: 22023 invalid_catalog with every fault and its path.';
comment on function billing.export_catalog is
'The catalog as a document, with the prices in force: applying it again changes nothing.';
comment on function billing.set_org_price is
'Gives an org its own price for a metric, from effective_at or now on; price null: back to the list price. Errors: PT404 unknown_metric, 22023.';
comment on function billing.calculate_cost(text, bigint, uuid) is
'What a quantity of a metric costs; with org_id at its own price, after what it used in this period, less what its plan still includes. Errors: PT404 unknown_metric, 42501 not_authorized, 22023.';
comment on function billing.calculate_cost(jsonb, uuid) is
'What a request of several metrics costs: {"query": 1, "tool": 2}. Cast a literal to jsonb. Errors: PT404 unknown_metric, 42501 not_authorized, 22023.';

comment on function billing.record_usage is
'Records that an org used a quantity of a metric, to be charged by settlement; false for an event_id that was recorded before, however long ago. occurred_at decides on the period (null: now; at most 5 minutes in the future). quantity: from 1, or the level (from 0) for max and last. Errors: PT404 unknown_metric, 22023.';
comment on function billing.record_usage_batch is
'Records up to 100,000 events [{"org_id", "metric", "quantity", "event_id", "occurred_at", "member_id", "properties"}, …]: all, or none. Errors: as record_usage, with the number of the faulty event as item in the detail.';
comment on function billing.check_limit is
'May the org use quantity more of the metric, why or why not, what is used, included and left, what it would cost, when it starts anew. Exact to the last recorded event; reads only. included and remaining are null where there is no limit. Errors: PT404 unknown_metric, 42501 not_authorized, 22023.';
comment on function billing.allows is
'Whether check_limit allows it: for row-level policies of the app. False for an org that is not the caller''s. Errors: PT404 unknown_metric, 22023.';
comment on function billing.credit_history is
'Credit per calendar month (UTC), the current one first: what came in, was used (also per metric), expired, was refunded, what else moved, and the closing balance. Errors: 42501 not_authorized, 22023.';
comment on function billing.subscribe is
'Puts an org on a plan. Without a subscription one begins at starts_at (null: now); with one, the plan changes now, in proportion to the rest of the period, or at its end when starts_at is that. Errors: PT404 unknown_plan, PT409 idempotency_conflict, 22023.';
comment on function billing.change_plan is
'Changes the plan of an org that has a subscription: now, in proportion to the rest of the period, or at its end. Errors: PT404 unknown_plan or unknown_subscription, PT409 idempotency_conflict, 22023.';
comment on function billing.cancel_subscription is
'Ends a subscription with its period, or at once; credits of the plan that are left stay until they expire. Errors: PT404 unknown_subscription, 22023.';
comment on function billing.set_org_allowance is
'Gives an org its own allowance per period, or limit (hard, soft, unlimited), for a metric; null leaves it to the plan. Errors: PT404 unknown_metric, 22023.';
comment on function billing.configure_alerts is
'Says at which percentages of an allowance, cap or balance alerts are raised, and how many days before a grant expires. Errors: 22023.';
comment on function billing.settle_org is
'Settles one org as of a moment (null: now): charges recorded usage beyond what is included, begins due periods, books what expired, brings reports and alerts up to date. Run again, it charges nothing. Errors: 22023.';
comment on procedure billing.settle is
'Settles all orgs that have something to settle, in batches with a COMMIT each; call it outside of a transaction. shard and of: only that share of the orgs, for several workers. Another run of the same share at the same time does nothing. What failed stands in settlement_faults and is tried again by the next run. Errors: 22023.';
comment on function billing.settlement_due is
'Orgs with something to settle, for settle().';
comment on function billing.begin_settlement is
'Notes the beginning of a run, marks an earlier one that was killed, and makes partitions ahead, for settle().';
comment on function billing.settle_orgs is
'Settles orgs, each for itself, and notes faults, for settle().';
comment on function billing.settlement_is_running is
'Whether the process of a run is still at it, for settlement_progress.';
comment on function billing.begin_periods is
'Begins the periods of an org that are due, each after the usage before it is charged; gives their number. Consumption does it by itself. Errors: 22023.';
comment on function billing.settlement_phase is
'Notes how far a run is, for settle().';
comment on function billing.make_partitions is
'Makes the partitions of usage_events for this month and the next two.';

comment on function billing.quote_pack is
'What a pack costs and brings: price, tax, fee and total in minor units, credits, bonus on top of them, until when they would be good. Errors: PT404 unknown_pack; 22023; 42501.';
comment on function billing.start_purchase is
'Starts the purchase of a pack: notes what is to be paid and what it will bring. Give payment_id and org_id to the provider as metadata. With customer, a worker is asked to charge at once. Errors: PT404 unknown_pack; PT409 idempotency_conflict; 42501; 22023.';
comment on function billing.set_payment_status is
'Moves a payment by hand, where no provider reports. Succeeded grants the credit, refunded takes back what is left of it. Errors: PT404 unknown_payment; PT409 illegal_transition; 22023.';
comment on function billing.link_payment is
'Tells by which id a provider knows a payment, where its reports do not say. Errors: PT404 unknown_payment; 22023.';
comment on function billing.link_customer is
'Tells which org a provider''s customer is, where its reports do not say. Errors: 22023.';
comment on function billing.set_webhook_secret is
'Sets the secret with which a provider signs; the one before stays good for keep_old. Nobody can read it back. Errors: 22023.';
comment on function billing.handle_webhook is
'Takes what a payment provider reports: verifies the signature and does the work of the event once. status: processed, duplicate, ignored or review. Errors: PT401 invalid_signature; 22023.';
comment on function billing.replay_webhook is
'Tries once more what was kept for a person, once its payment, org or price is known. Errors: PT404 unknown_event; 22023.';
comment on function billing.stripe_webhook is
'handle_webhook for PostgREST: POST /rpc/stripe_webhook with the body as it came; the signature from the request''s headers.';
comment on function billing.razorpay_webhook is
'handle_webhook for PostgREST: POST /rpc/razorpay_webhook with the body as it came; signature and event id from the request''s headers.';
comment on function billing.configure_auto_recharge is
'Lets a pack be bought whenever spendable and pending credit together are below a threshold. monthly_ceiling: minor units per calendar month. Errors: PT404 unknown_pack; 42501; 22023.';
comment on function billing.emit_event is
'Puts work into the outbox and tells whoever listens to billing_events.';
comment on function billing.claim_events is
'Takes work from the outbox that is due, for as long as the lease: nobody else gets it before that is over. Errors: 22023.';
comment on function billing.ack_events is
'The work is done; gives how many were not acknowledged before. Errors: 22023.';
comment on function billing.fail_event is
'The work failed: it comes again after retry_in (null: 10 seconds, doubled each time, at most an hour), or is given up after ten attempts. Gives retry or dead. Errors: PT404 unknown_event.';
comment on function billing.configure_delivery is
'Names the address to which deliver_events() posts, with headers (a token, say) that nobody can read back; topics null: all; url null: none. Errors: 22023.';
comment on function billing.deliver_events is
'Posts what of the outbox is due, as {event_id, org_id, topic, payload, attempt, created_at}, with the extension http or pg_net; gives how many were acknowledged. Call it from pg_cron. Errors: 55000 not_configured, no_http.';
comment on function billing.requeue_event is
'Brings back work that was given up. Errors: PT404 unknown_event.';
comment on function billing.note_signal is
'Raises a flag of an org, or counts it once more; freezes the org where the scores of its open flags reach freeze_at. score: 1 to 100. Errors: 22023.';
comment on function billing.configure_signals is
'How many payments in an hour, orgs on one card and failures in a day are too many, and at which sum of scores an org is frozen (null: never). Errors: 22023.';
comment on function billing.freeze_org is
'check_limit() says frozen of the org from now on. Errors: 22023.';
comment on function billing.unfreeze_org is
'Takes that back and resolves the flags of the org; whether it was frozen.';
comment on function billing.resolve_flag is
'Resolves an open flag; whether there was one.';
comment on function billing.look_for_signals is
'What a payment that was started, failed or paid says about its org.';

comment on function billing.unfolded_usage is
'What an org consumed that is not counted in usage_days yet, by metric and day (UTC), and what was charged for it: for the view usage_by_day. Errors: 42501 for an org that is not the caller''s, 22023.';
comment on function billing.clock is
'Billing time: the wall clock, or the setting billing.test_clock (superuser only).';
comment on function billing.install is
'Creates the tables, or migrates them after ALTER EXTENSION UPDATE; says what it did. Running it again changes nothing.';
comment on function billing.version is
'Version of the library, and of the tables that it needs and finds.';
comment on function billing.my_orgs is
'Orgs of the caller, from request.jwt.claims: app_metadata.org_ids, org_id, and the configured membership relation for sub.';
comment on function billing.configure_membership is
'Names the table that tells which user (the claim sub) belongs to which org: org_column of type uuid; user_column of type uuid, text, varchar, smallint, integer or bigint. It is read with the rights of its owner. Three nulls: no table any more. For the owner of the extension. Errors: 42501 no_level, 22023.';
comment on function billing.grant_access is
'Gives a role a level: member (reads its own orgs), service (calls everything), auditor (reads everything), webhook (delivers providers'' reports). A role has one of the first three, the newest given, and webhook beside it. For the owner of the extension. Errors: 42501 no_level, 42704 unknown_role, 22023.';
comment on function billing.revoke_access(name) is
'Takes all levels from a role, and with them every right in the schema billing. For the owner of the extension. Errors: as with a level.';
comment on function billing.revoke_access(name, text) is
'Takes a level from a role, or all of them (null), and what rights in the schema billing came with it. For the owner of the extension. Errors: 42501 no_level, 42704 unknown_role (with what it is called now, where it was renamed), 22023.';

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
