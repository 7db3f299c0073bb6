-- For PostgREST: a function with one unnamed json argument gets the body of the request as it came; the signature stands in the
-- request's headers.

create function billing.stripe_webhook(json) returns json
    language c volatile as 'MODULE_PATHNAME', 'webhook_gate';
comment on function billing.stripe_webhook is
'Takes a report of Stripe by PostgREST, as handle_webhook does: POST /rpc/stripe_webhook with the body as it came; the signature is taken from the headers of the request.';
create function billing_internal.stripe_webhook(json) returns json
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
declare
    headers json := nullif(current_setting('request.headers', true), '');
begin
    return (select row_to_json(w) from billing.handle_webhook('stripe', $1::text, headers ->> 'stripe-signature') w);
end $$;

create function billing.razorpay_webhook(json) returns json
    language c volatile as 'MODULE_PATHNAME', 'webhook_gate';
comment on function billing.razorpay_webhook is
'Takes a report of Razorpay by PostgREST, as handle_webhook does: POST /rpc/razorpay_webhook with the body as it came; signature and event id are taken from the headers of the request.';
create function billing_internal.razorpay_webhook(json) returns json
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp as $$
declare
    headers json := nullif(current_setting('request.headers', true), '');
begin
    return (select row_to_json(w) from billing.handle_webhook('razorpay', $1::text, headers ->> 'x-razorpay-signature',
                                                              nullif(headers ->> 'x-razorpay-event-id', '')) w);
end $$;
