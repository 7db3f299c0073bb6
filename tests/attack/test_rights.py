"""security 4 and 10, access 1: who was given rights by a guide that was pasted, and not by grant_access()."""

import unittest

import psycopg2

import attack
from attack import OTHER, OWN, RELATIONS, ROUTINES, THIRD
from support import call, connect, rows, value

# What anybody may call who has the right to execute it: it changes nothing and tells of no org, or asks for a signature.
OPEN = {"my_orgs", "clock", "version", "quote_pack", "calculate_cost", "allows", "stripe_webhook", "razorpay_webhook"}
# What views and settle() call in the machinery: it asks for the level of its caller like anything else.
GATES = {"unfolded_usage", "settlement_is_running", "begin_settlement", "settlement_due", "settle_orgs", "settlement_phase"}
CLAIMS = f'{{"org_id": "{OWN}"}}'


class Functions(attack.AttackCase):
    """Every function, called by roles who may execute it but have no level for it."""

    def attack(self, role, claims, permitted, org=OTHER):
        """Calls everything for an org of others; gives what should not have been."""
        self.paste(role)
        session = self.connect(autocommit=False)
        faults, called = [], 0
        for routine, state, result, changed in self.outcomes(session, role, claims, org):
            called += 1
            if changed:
                faults.append(f"{routine.signature} changed {changed}")
            if str(THIRD) in str(result) and role != self.auditor:
                faults.append(f"{routine.signature} told of another org")
            # The bodies behind the gates have no more rights than who calls them: some do nothing without an error.
            if (routine.schema == "billing" or routine.name in GATES) and not state.startswith("42501") and routine.name not in OPEN | permitted:
                faults.append(f"{routine.signature} ended with {state}")
        session.rollback()
        self.assertGreater(called, 120)
        self.assertEqual(faults, [])

    def allowed(self, level):
        """What grant_access lets a level execute."""
        return {row[0] for row in rows(self.db, "select p.proname from billing_internal.routines_of(%s) r join pg_proc p on p.oid = r", level)}

    def test_stranger(self):
        """security 4: the right to execute a function is not enough for a role without a level."""
        self.attack(self.stranger, CLAIMS, set())

    def test_member(self):
        """security 4: a member does nothing to the org of others, whatever it may execute."""
        self.attack(self.member, CLAIMS, set())

    def test_auditor(self):
        """security 4: an auditor reads what it may, and changes nothing."""
        self.attack(self.auditor, "", self.allowed("auditor"))

    def test_webhook(self):
        """security 4: who delivers the reports of providers does nothing with one that is not signed."""
        self.attack(self.webhook, "", self.allowed("webhook"))

    def test_settle(self):
        """security 4: the procedure asks for the level, too."""
        for role in (self.stranger, self.member, self.auditor, self.webhook):
            self.paste(role)
            before = self.digest(self.db)
            self.assert_code("42501", self.session(role, CLAIMS), "call billing.settle()")
            self.assertEqual(self.digest(self.db), before)

    def test_the_same_calls_work_for_a_service(self):
        """The arguments are such that most of the calls do something where the level is there: the tests above could fail."""
        session = self.connect(autocommit=False)
        ended = {routine.signature: (state, changed) for routine, state, _, changed in self.outcomes(session, self.service)
                 if routine.name in self.allowed("service")}
        session.rollback()
        self.assertGreater(sum(state == "00000" for state, _ in ended.values()), 45, ended)
        self.assertGreater(sum(bool(changed) for _, changed in ended.values()), 25, ended)


class Tables(attack.AttackCase):
    """Every table, view and sequence, for a role with all rights on it."""

    def setUp(self):
        super().setUp()
        self.paste(self.stranger)
        rows(self.db, f"grant usage, create on schema app to {self.stranger}; grant create on schema public to {self.stranger}")

    def attempt(self, statements, sequences=False):
        """Runs each statement of each relation as the stranger, who says that it is of OWN; gives what changed or was seen."""
        session = self.connect(autocommit=False)
        faults = []
        for relation in rows(self.db, RELATIONS):
            for statement in statements(relation):
                rows(session, "savepoint before")
                before = self.digest(session, sequences)
                try:
                    rows(session, f"select pg_catalog.set_config('request.jwt.claims', %s, true); set local role {self.stranger}", CLAIMS)
                    seen = str(rows(session, statement))
                    if str(OTHER) in seen or str(THIRD) in seen:
                        faults.append(f"{statement}: rows of others")
                except psycopg2.Error as error:
                    rows(session, "rollback to before")
                    if error.pgcode == "57014":
                        faults.append(f"{statement}: hangs")
                rows(session, "reset role")
                if self.digest(session, sequences) != before:
                    faults.append(f"{statement}: changed something")
                rows(session, "rollback to before; release before")
        session.rollback()
        return faults

    def test_rows(self):
        """security 4: rights on the tables neither write a row nor show one of others."""
        def statements(relation):
            if relation.kind == "S":
                return
            column = relation.columns[0]
            yield f"insert into {relation.name} default values"
            yield f"insert into {relation.name} select * from {relation.name}"
            yield f"update {relation.name} set {column} = {column}"
            yield f"delete from {relation.name}"
            yield f"select * from {relation.name}"
            yield f"select * from {relation.name} for update"
            yield f"select * from {relation.name} order by 1 limit 5 for key share skip locked"
        self.assertEqual(self.attempt(statements), [])

    def test_truncate(self):
        """security 4: row security knows no TRUNCATE, so every table has to refuse it by itself."""
        self.assertEqual(self.attempt(lambda relation: [] if relation.kind not in "rp" else [f"truncate {relation.name} cascade"]), [])

    def test_sequences(self):
        """security 9: a sequence that others may set stops the settlement of all."""
        self.assertEqual(self.attempt(lambda relation: [] if relation.kind != "S" else [
            f"select setval('{relation.name}', 9223372036854775807)", f"select nextval('{relation.name}')"], sequences=True), [])

    def test_copy(self):
        """security 4: COPY is bound by row security as well."""
        import io
        session = self.session(self.stranger, CLAIMS, autocommit=False)
        for relation in rows(self.db, RELATIONS):
            if relation.kind not in "rp":
                continue
            for option in ("on", "off"):
                session.rollback()
                rows(session, f"set local role {self.stranger}; set local row_security = {option}; select pg_catalog.set_config('request.jwt.claims', '{CLAIMS}', true)")
                out = io.StringIO()
                with session.cursor() as cursor:
                    try:
                        cursor.copy_expert(f"copy (select * from {relation.name}) to stdout", out)
                    except psycopg2.Error as error:
                        self.assertEqual(error.pgcode, "42501", relation.name)
                self.assertNotIn(str(OTHER), out.getvalue(), relation.name)
        session.rollback()

    def test_trigger(self):
        """security 4: with the right TRIGGER a function of others hangs on our tables; it does not run with our rights."""
        session = self.connect(autocommit=False)
        rows(session, f"set local role {self.stranger}")
        rows(session, attack.NOTE.format(schema="app", role=self.stranger))
        rows(session, """create function app.spring() returns trigger language plpgsql as $$
            begin perform app.note('trigger on ' || tg_relid::regclass); return new; end $$;
            grant execute on all functions in schema app to public""")
        made = 0
        for relation in rows(self.db, RELATIONS):
            for kind in ("before insert or update", "after insert or update or delete"):
                if relation.kind not in "rp" or relation.is_partition:
                    continue
                rows(session, "savepoint before")
                try:
                    rows(session, f"""create trigger spring_{kind[:5]} {kind} on {relation.name} for each row execute function app.spring();
                                      create trigger springs_{kind[:5]} {kind} on {relation.name} for each statement execute function app.spring()""")
                    made += 1
                except psycopg2.Error:
                    rows(session, "rollback to before")
        self.assertGreaterEqual(made, 0)
        session.notices.clear()
        rows(session, f"reset role; grant usage on schema app to public; savepoint work; set local role {self.service}")
        try:
            self.service_at_work(session)
        except psycopg2.Error:
            pass  # To refuse the work is right as well.
        found = self.ran(session, self.stranger)
        session.rollback()
        self.assertEqual(found, [])

    def test_triggers_go_with_the_rights(self):
        """security 4: what hangs on our tables by rights that were taken does not stay; status() says so until then."""
        rows(self.db, "create table app.sprung (who text); grant all on app.sprung to public; grant usage on schema app to public")
        owner = self.session(self.stranger)
        rows(owner, """create function app.stay() returns trigger language plpgsql as $$ begin insert into app.sprung values (current_user); return new; end $$;
                       grant execute on function app.stay() to public""")
        trigger = "create trigger stay before insert on billing.ledger for each row execute function app.stay()"
        self.assert_code("42501 not_owner", owner, trigger)
        # As if it had been made before there was a guard.
        with attack.unguarded(self.db):
            rows(owner, trigger)
        self.assert_code("42501 foreign_trigger", self.db, f"select billing.consume_credits('{OWN}', 'call')")
        self.assertEqual(value(self.db, "select level from billing.status() where check_name = 'things of others'"), "bad")
        self.addCleanup(rows, self.db, "drop trigger if exists stay on billing.ledger; drop function app.stay(); drop table app.sprung")
        self.assertIn("stay on billing.ledger", value(self.db, "select billing.install()"))
        levels = dict(rows(self.db, "select check_name, level from billing.status()"))
        call(self.db, "consume_credits", OWN, "call")
        self.assertEqual((rows(self.db, "select distinct who from app.sprung"), levels["rights"], levels["things of others"]), ([], "ok", "ok"))

    def test_foreign_key(self):
        """security 4: with the right REFERENCES the casts of a type of others run in the checks of a foreign key, as the owner of our table."""
        session = self.session(self.stranger, autocommit=False)
        rows(session, attack.NOTE.format(schema="app", role=self.stranger))
        rows(session, "create type app.key as (x int)")
        keys = rows(self.db, """select c.conrelid::regclass::text as relation, a.attname as name, a.atttypid::regtype::text as type from pg_constraint c
                                  join pg_attribute a on a.attrelid = c.conrelid and a.attnum = c.conkey[1]
                                 where c.connamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and c.contype = 'p' and cardinality(c.conkey) = 1""")
        self.assertGreater(len(keys), 3)
        for kind in sorted({key.type for key in keys}):
            sample = {"uuid": f"'{OWN}'", "text": "'call'", "bigint": "1"}.get(kind, "null")
            rows(session, f"""create function app.cast_{kind.split()[0]}(app.key) returns {kind} language plpgsql as $$ begin perform app.note('cast'); return {sample}; end $$;
                              create cast (app.key as {kind}) with function app.cast_{kind.split()[0]}(app.key) as implicit;
                              grant execute on function app.cast_{kind.split()[0]}(app.key), app.note(text) to public""")
        for n, key in enumerate(keys):
            rows(session, "savepoint before")
            try:
                rows(session, f"""create table app.referring_{n} (key app.key references {key.relation} ({key.name}));
                                  insert into app.referring_{n} values (row(1)::app.key)""")
            except psycopg2.Error:
                rows(session, "rollback to before")
        found = self.ran(session, self.stranger)
        session.rollback()
        self.assertEqual(found, [])

    def test_foreign_keys_hold_nothing(self):
        """security 9: with the right REFERENCES, rows of others that refer to ours keep no service from its work, nor the settlement."""
        session = self.connect(autocommit=False)
        rows(session, f"select billing.record_usage('{OWN}', 'call', 2); set local role {self.stranger}; select set_config('request.jwt.claims', '{CLAIMS}', true)")
        keys = rows(self.db, """select c.conrelid::regclass::text as relation, string_agg(quote_ident(a.attname), ', ' order by k.n) as columns
                                  from pg_constraint c cross join unnest(c.conkey) with ordinality k (number, n) join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.number
                                 where c.connamespace in ('billing'::regnamespace, 'billing_internal'::regnamespace) and c.contype = 'p' group by c.oid, c.conrelid order by 1""")
        made = 0
        for n, key in enumerate(keys):
            rows(session, "savepoint before")
            try:
                rows(session, f"""create table app.holding_{n} as select {key.columns} from {key.relation};
                                  alter table app.holding_{n} add foreign key ({key.columns}) references {key.relation} ({key.columns})""")
                made += 1
            except psycopg2.Error:
                rows(session, "rollback to before")
        rows(session, f"set local role {self.service}")
        faults = ""
        try:
            self.service_at_work(session)
        except psycopg2.Error as error:
            faults = str(error)
        rows(session, "rollback")
        self.assertEqual(faults, "", f"with {made} foreign keys")

    def test_locks_of_a_member(self):
        """security 9: what grant_access gives a member takes no lock for which others wait."""
        member = self.session(self.member, CLAIMS, autocommit=False)
        for relation in rows(self.db, RELATIONS):
            if relation.kind not in "rp":
                continue
            for mode in ("row share", "row exclusive", "share update exclusive", "share", "share row exclusive", "exclusive", "access exclusive"):
                with self.subTest(relation.name, mode=mode):
                    self.assert_code("42501", member, f"lock table {relation.name} in {mode} mode nowait")
                    member.rollback()
                    rows(member, f"set local role {self.member}")


class Install(attack.AttackCase):
    """security 4: install() takes what grant_access() had not given, and says whose it was."""

    def rights(self, *roles):
        """All that roles have in our schemas."""
        return {tuple(row) for row in rows(self.db, """select billing_internal.role_name(grantee), object, privilege from billing_internal.rights()
                                                       where billing_internal.role_name(grantee) = any (%s)""", list(roles))}

    def status(self):
        """What status() says of rights."""
        return value(self.db, "select level from billing.status() where check_name = 'rights'")

    def assert_taken(self, statement, *named):
        """install() takes what the statement gave; status() tells before, and install() whose it was."""
        levels = self.rights(self.service, self.member, self.auditor, self.webhook)
        self.assertEqual(self.status(), "ok")
        rows(self.db, statement)
        before = self.status()
        said = value(self.db, "select billing.install()")
        self.assertEqual(self.rights(self.stranger, "PUBLIC", self.other), set(), statement)
        self.assertEqual(self.rights(self.service, self.member, self.auditor, self.webhook), levels, "those with a level keep exactly what it gives")
        self.assertEqual(self.status(), "ok")
        for role in named:
            self.assertIn(role, said)
        self.assertEqual(before, "bad", f"status() after {statement}")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.other = cls.bare_role("other")

    def test_pasted(self):
        """security 4: all of the rights that a guide recommends."""
        self.assert_taken(attack.PASTED.format(self.stranger), self.stranger)

    def test_public(self):
        """security 4: rights of everybody."""
        self.assert_taken(attack.PASTED.format("public"), "PUBLIC")

    def test_columns(self):
        """security 4: rights on single columns."""
        self.assert_taken(f"grant select (code_hash), update (credits) on billing.gift_cards to {self.stranger}", self.stranger)

    def test_passed_on(self):
        """security 4: rights with grant option, and those who got them from whoever had them."""
        self.assert_taken(f"""grant usage on schema billing, billing_internal to {self.stranger} with grant option; grant all on billing_internal.settings to {self.stranger} with grant option;
                              set role {self.stranger}; grant usage on schema billing, billing_internal to {self.other}; grant insert, select on billing_internal.settings to {self.other}; reset role""",
                          self.stranger, self.other)

    def test_passed_on_by_a_level(self):
        """security 4: rights that a role with a level was given to pass on."""
        self.assert_taken(f"""grant execute on function billing.grant_access(name, text) to {self.service} with grant option; grant usage on schema billing to {self.service} with grant option;
                              set role {self.service}; grant execute on function billing.grant_access(name, text) to {self.other}; grant usage on schema billing to {self.other}; reset role""",
                          self.other)

    def test_default_privileges(self):
        """security 4: rights that tables and functions to come would have brought with them."""
        self.assert_taken(f"""alter default privileges in schema billing grant all on tables to {self.stranger};
                              alter default privileges in schema billing grant all on functions to {self.stranger};
                              alter default privileges in schema billing grant all on sequences to {self.stranger}""", self.stranger)

    def test_beyond_the_level(self):
        """security 4: a role with a level is left with what that gives, and is named if it had more."""
        self.assert_taken(f"""grant insert, trigger on billing.ledger to {self.member}; grant execute on function billing.install() to {self.service};
                              grant select on billing_internal.secrets to {self.auditor}; grant usage on schema billing_internal to {self.webhook}""",
                          self.member, self.service, self.auditor, self.webhook)

    def test_default_privileges_before_the_extension(self):
        """security 4: default privileges of the database that were there before CREATE EXTENSION, in the schema and in all of them."""
        for where in ("", "in schema billing"):
            with self.subTest(where):
                database = connect(self.new_database())
                self.addCleanup(database.close)
                rows(database, "create schema billing")
                for kind in ("tables", "functions", "sequences"):
                    rows(database, f"alter default privileges {where} grant all on {kind} to {self.stranger}")
                rows(database, "create extension pg_billing")
                self.assertIn(self.stranger, value(database, "select billing.install()"))
                rows(database, "select billing_internal.make_partitions(now() + interval '1 year')")
                self.assertEqual(rows(database, "select object, privilege from billing_internal.rights() where grantee = %s::regrole", self.stranger), [])
                self.assertEqual(value(database, "select level from billing.status() where check_name = 'rights'"), "ok")


class Creators(attack.AttackCase):
    """security 4 and 5: a guide that says GRANT ALL ON SCHEMA lets others create beside us."""

    def overloads(self):
        """Functions of our names that fit a call as well or better: without the defaults, and with types that a literal or a result may have."""
        others = {"bigint": "integer", "interval": "text", "name": "text", "integer": "bigint", "timestamp with time zone": "text", "regprocedure": "oid", "regclass": "oid"}
        for routine in rows(self.db, """select n.nspname as schema, p.proname as name, p.pronargdefaults as defaults, p.prokind as kind, p.proargtypes::oid[]::regtype[]::text[] as types
                                          from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('billing', 'billing_internal') and p.prorettype <> 'trigger'::regtype"""):
            for count in range(len(routine.types) - routine.defaults, len(routine.types) + 1):
                types = routine.types[:count]
                found = {tuple(types), tuple(others.get(kind, kind) for kind in types)}
                found |= {tuple(others.get(kind, kind) if n == place else kind for n, kind in enumerate(types)) for place in range(count)}
                for variant in sorted(found):
                    yield routine.schema, routine.name, ", ".join(variant)

    def test_functions_beside_ours(self):
        """rule 10: a function that fits a call of ours better than our own does not run with our rights, nor with those of who settles."""
        rows(self.db, "create table app.uses (org_id uuid, n int); select billing.meter_table('app.uses', 'call', 'org_id', 'n')")
        rows(self.db, f"""grant all on schema billing, billing_internal to {self.stranger}; grant usage, create on schema app to {self.stranger}; grant usage on schema app to public;
                          grant insert on app.uses to {self.stranger}""")
        stranger = self.session(self.stranger)
        rows(stranger, attack.NOTE.format(schema="app", role=self.stranger))
        ours, made = rows(self.db, ROUTINES), []
        self.assert_code("42501 not_owner", stranger, "create function billing.clock(int) returns int language sql as 'select 1'")
        # As if they had been made before there was a guard.
        with attack.unguarded(self.db):
            for schema, name, arguments in list(self.overloads()):
                try:
                    rows(stranger, f"""create function {schema}.{name}({arguments}) returns boolean language plpgsql as
                                       $$ begin perform app.note('{schema}.{name}({arguments})'); return null; end $$""")
                    made.append(f"drop function {schema}.{name}({arguments})")
                except psycopg2.Error as error:
                    self.assertIn(error.pgcode, ("42723", "42501", "42P13", "42809"), error)
        self.assertGreater(len(made), 100)
        # Called with all of their arguments, and of the exact types, it is ours that run: what they call in turn is the question.
        session = self.connect(autocommit=False)
        for _ in self.outcomes(session, "postgres", routines=ours):
            pass
        session.rollback()
        session.autocommit = True
        for role in ("postgres", self.service):
            rows(session, f"reset search_path; set role {role}")
            for work in ("call billing.settle(null::timestamptz, 0::integer, 1::integer)", f"insert into app.uses values ('{OWN}', 1)",
                         f"insert into app.uses values ('{OWN}', 1), ('{OWN}', 2)", "select billing.install()"):
                try:
                    rows(session, work)
                except psycopg2.Error:
                    pass
        found = self.ran(session, self.stranger)
        try:
            said = dict(rows(self.db, "select check_name, level from billing.status()"))["things of others"]
        except psycopg2.Error as error:
            said = str(error)
        for statement in made:
            rows(self.db, statement)
        rows(self.db, f"alter role {self.stranger} nosuperuser; revoke all on schema billing, billing_internal from {self.stranger}; select billing.install()")
        self.assertEqual(found, [], "what ran")
        self.assertEqual(said, "bad", "what others have created beside us stays after install() took their rights: status() has to tell")


class Renamed(attack.AttackCase):
    """security 11: roles that were renamed, dropped and made again."""

    def made(self, level):
        """A role with a level, and another name for it."""
        role = self.new_role(self.db, level)
        self.roles.append(role + "_x")
        return role, role + "_x"

    def may_grant(self, role):
        """Whether a role is a service."""
        rows(self.db, f"grant usage on schema billing to {role}; grant execute on all functions in schema billing to {role}")
        session = self.session(role)
        try:
            call(session, "grant_credits", OWN, 1)
            return True
        except psycopg2.Error as error:
            self.assertEqual(error.pgcode, "42501")
            return False

    def test_renamed(self):
        """security 11: the level stays with the role, and a new one of the old name is nobody, also after install()."""
        role, renamed = self.made("service")
        rows(self.admin, f"alter role {role} rename to {renamed}; create role {role}")
        for _ in range(2):
            self.assertEqual((self.may_grant(renamed), self.may_grant(role)), (True, False))
            rows(self.db, "select billing.install()")

    def test_dropped(self):
        """security 11: a role that was dropped and made again is nobody, also after install()."""
        role, _ = self.made("service")
        rows(self.db, f"drop owned by {role}; drop role {role}; create role {role}")
        self.assertFalse(self.may_grant(role))
        rows(self.db, "select billing.install()")
        self.assertFalse(self.may_grant(role))

    def test_revoked_by_the_old_name(self):
        """security 11: revoke_access of a role that was renamed says what it is called now."""
        role, renamed = self.made("service")
        rows(self.admin, f"alter role {role} rename to {renamed}")
        with self.assertRaises(psycopg2.Error) as caught:
            rows(self.db, "select billing.revoke_access(%s)", role)
        self.assertEqual(caught.exception.pgcode, "42704")
        self.assertIn(renamed, caught.exception.diag.message_detail)
        rows(self.db, "select billing.revoke_access(%s)", renamed)
        self.assertFalse(self.may_grant(renamed))

    def test_revoked_where_another_has_the_name(self):
        """security 11: a role of the old name that was given nothing cannot be revoked without a word."""
        role, renamed = self.made("service")
        rows(self.admin, f"alter role {role} rename to {renamed}; create role {role}")
        self.assert_code("42704", self.db, f"select billing.revoke_access('{role}')")

    def test_names_exchanged(self):
        """security 11: two roles that exchanged their names keep their levels, and install() goes on."""
        first, spare = self.made("service")
        second, _ = self.made("service")
        exchange = f"alter role {first} rename to {spare}; alter role {second} rename to {first}; alter role {spare} rename to {second}"
        rows(self.admin, exchange)
        self.addCleanup(rows, self.admin, exchange)
        rows(self.db, "select billing.install()")
        self.assertEqual((self.may_grant(first), self.may_grant(second)), (True, True))

    def test_lower_level_after_renaming(self):
        """security 11: a role that was renamed and is then given a lower level has lost the higher one."""
        role, renamed = self.made("service")
        rows(self.admin, f"alter role {role} rename to {renamed}")
        rows(self.db, "select billing.grant_access(%s, 'member')", renamed)
        self.assertFalse(self.may_grant(renamed))

    def test_new_role_of_the_old_name_is_given_a_level(self):
        """security 11: what is given to a new role of the old name takes nothing from the one that was renamed."""
        for level in ("member", "service"):
            with self.subTest(level):
                role, renamed = self.made("service")
                rows(self.admin, f"alter role {role} rename to {renamed}; create role {role}")
                rows(self.db, "select billing.grant_access(%s, %s)", role, level)
                self.assertTrue(self.may_grant(renamed))


if __name__ == "__main__":
    unittest.main()
